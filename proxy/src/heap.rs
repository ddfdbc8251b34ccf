//! The allocator: the system's, with two things added that it does not do by itself.
//!
//! **Large blocks go when they are freed.** By default glibc's threshold for memory of its own (mmap) grows with what is
//! freed, up to 32 MiB, and then the tables of a policy come from the heap, which seldom shrinks: a gate with 1,000,000
//! names took 75 MiB, and 278 MiB after five reloads. With the threshold held it takes 43 MiB and 44 MiB. Of allocators
//! of their own, mimalloc made an answer from the cache no cheaper, one by an upstream 4 µs cheaper, and a million names
//! take 146 MiB.
//!
//! **Blocks on cache lines of their own are kept for the next.** tokio gives each task and each socket such a block, and
//! glibc (2.36) keeps none of them at hand: it cuts each out of a larger one, and puts the pieces together again. Three of
//! them were 2,300 of the 30,000 instructions of a tunnel.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The allocator of this program.
#[global_allocator]
static HEAP: Heap = Heap;

/// The alignment that tokio asks for: two cache lines, which a processor fetches together.
const ALIGN: usize = 128;
/// Sizes that are kept: multiples of the alignment, up to a kilobyte.
const SIZES: usize = 8;
/// Blocks of each size that a thread keeps: what so many clients leave behind before as many come.
const KEPT: usize = 64;

thread_local! {
    static SPARE: Spare = const { Spare([const { Shelf::new() }; SIZES]) };
}

struct Heap;

/// A thread's spare blocks, one shelf for each size.
struct Spare([Shelf; SIZES]);

/// Free blocks of one layout, which [`System`] gave. The last one put here is the next to be taken: it is in a cache.
struct Shelf {
    blocks: [Cell<*mut u8>; KEPT],
    count: Cell<usize>,
}

impl Shelf {
    const fn new() -> Self {
        Self { blocks: [const { Cell::new(std::ptr::null_mut()) }; KEPT], count: Cell::new(0) }
    }

    fn take(&self) -> Option<*mut u8> {
        let last = self.count.get().checked_sub(1)?;
        self.count.set(last);
        self.blocks.get(last).map(Cell::get)
    }

    /// Whether there was room for it.
    fn put(&self, block: *mut u8) -> bool {
        let count = self.count.get();
        let place = self.blocks.get(count);
        place.into_iter().for_each(|place| place.set(block));
        self.count.set(count + usize::from(place.is_some()));
        place.is_some()
    }
}

/// The shelf of a layout, and the layout of all blocks on it, which is as large or larger.
fn shelf(layout: Layout) -> Option<(usize, Layout)> {
    if layout.align() != ALIGN {
        return None;
    }
    let number = layout.size().div_ceil(ALIGN).checked_sub(1).filter(|number| *number < SIZES)?;
    Some((number, Layout::from_size_align((number + 1) * ALIGN, ALIGN).ok()?))
}

// SAFETY: a block comes from `System`, with the layout that was asked for or, where that has a shelf, with the shelf's,
// which is aligned alike and no smaller; both depend on the layout that was asked for alone, so a block goes back with the
// layout that it came with, or onto the shelf of that. A block is on one shelf or in use: only `dealloc` puts one there,
// which its caller may not use any more, and `take` removes what it gives. A shelf belongs to one thread, and nothing here
// calls back while it is changed. A thread that ends has no shelves any more, and goes to `System`.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((number, whole)) = shelf(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        };
        let spare = SPARE.try_with(|spare| spare.0.get(number).and_then(Shelf::take));
        // SAFETY: it is no smaller than what the caller promises not to be of no size.
        spare.ok().flatten().unwrap_or_else(|| unsafe { System.alloc(whole) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some((number, whole)) = shelf(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.dealloc(block, layout) };
        };
        let kept = SPARE.try_with(|spare| spare.0.get(number).is_some_and(|shelf| shelf.put(block)));
        if !kept.unwrap_or(false) {
            // SAFETY: with this layout it came from there.
            unsafe { System.dealloc(block, whole) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if shelf(layout).is_none() {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's promise; what is given has room for the layout.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
        if shelf(layout).is_none() && shelf(new).is_none() {
            // SAFETY: the caller's promise.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the caller's promise; both blocks have room for what is copied, and they are not the same.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        for (shelf, size) in self.0.iter().zip((ALIGN..).step_by(ALIGN)) {
            let Ok(layout) = Layout::from_size_align(size, ALIGN) else { continue };
            while let Some(block) = shelf.take() {
                // SAFETY: what is on a shelf came from there with its layout, and nobody else has it.
                #[allow(unsafe_code)]
                unsafe {
                    System.dealloc(block, layout);
                }
            }
        }
    }
}

/// The threshold that glibc begins with: what is larger has pages of its own, which go when it is freed.
#[cfg(target_env = "gnu")]
const OWN_PAGES: nix::libc::c_int = 128 * 1024;

/// Holds the threshold. To be called before there are other threads.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub(crate) fn give_back() {
    // SAFETY: it takes two numbers and sets one of the allocator's, under the allocator's lock. Where it fails, which
    // it tells, nothing has changed.
    _ = unsafe { nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, OWN_PAGES) };
}

/// Other allocators give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    /// A block that is filled with a byte, and has been looked at whenever it is given back.
    struct Filled {
        block: *mut u8,
        layout: Layout,
        byte: u8,
    }

    // SAFETY: it is used by one thread at a time.
    #[allow(unsafe_code)]
    unsafe impl Send for Filled {}

    #[allow(unsafe_code)]
    impl Filled {
        fn new(size: usize, align: usize, byte: u8) -> Self {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the size is not zero, and the block has room for so many bytes.
            let block = unsafe {
                let block = HEAP.alloc(layout);
                block.write_bytes(byte, size);
                block
            };
            assert_eq!(block.addr() % align, 0);
            Self { block, layout, byte }
        }

        fn grown(mut self, size: usize) -> Self {
            // SAFETY: the block is of this layout.
            let block = unsafe { HEAP.realloc(self.block, self.layout, size) };
            let layout = Layout::from_size_align(size, self.layout.align()).unwrap();
            self.layout = Layout::from_size_align(size.min(self.layout.size()), layout.align()).unwrap();
            self.block = block;
            self.check();
            // SAFETY: it has room for so many bytes now.
            unsafe { block.write_bytes(self.byte, size) };
            self.layout = layout;
            self
        }

        fn check(&self) {
            // SAFETY: all of it was written.
            let bytes = unsafe { std::slice::from_raw_parts(self.block, self.layout.size()) };
            assert!(bytes.iter().all(|byte| *byte == self.byte), "{:?}", self.layout);
        }
    }

    #[allow(unsafe_code)]
    impl Drop for Filled {
        fn drop(&mut self) {
            self.check();
            // SAFETY: it came with this layout, and nobody else has it.
            unsafe { HEAP.dealloc(self.block, self.layout) };
        }
    }

    const LAYOUTS: [(usize, usize); 10] = [
        (1, 128),
        (128, 128),
        (129, 128),
        (640, 128),
        (1024, 128),
        (1025, 128),
        (4096, 128),
        (640, 64),
        (640, 256),
        (640, 8),
    ];

    #[test]
    fn blocks_are_nobody_elses_whoever_gives_them_back() {
        for round in 0..4_u8 {
            let mut blocks: Vec<Filled> = (0..2 * KEPT)
                .flat_map(|number| LAYOUTS.map(|layout| (number, layout)))
                .map(|(number, (size, align))| Filled::new(size, align, round.wrapping_add(number as u8)))
                .collect();
            let others = blocks.split_off(blocks.len() / 2);
            thread::spawn(move || {
                drop(others);
                drop(LAYOUTS.map(|(size, align)| Filled::new(size, align, 7)));
            })
            .join()
            .unwrap();
            blocks.iter().for_each(Filled::check);
        }
    }

    #[test]
    fn a_block_is_kept_for_the_next_of_its_size_in_this_thread_and_no_more_than_a_few() {
        let addresses = |count: usize| -> Vec<usize> {
            let blocks: Vec<Filled> = (0..count).map(|_| Filled::new(600, 128, 1)).collect();
            blocks.iter().map(|block| block.block.addr()).collect()
        };
        let (first, again) = (addresses(KEPT), addresses(KEPT));
        assert!(again.iter().all(|address| first.contains(address)));
        addresses(3 * KEPT);
        SPARE.with(|spare| assert_eq!(spare.0[4].count.get(), KEPT));
    }

    #[test]
    fn what_outlives_a_threads_shelves_gets_blocks_all_the_same() {
        static WITHOUT_SHELVES: AtomicBool = AtomicBool::new(false);

        /// What a thread uses before its shelves, it ends after them.
        struct Late;

        impl Drop for Late {
            fn drop(&mut self) {
                drop(LAYOUTS.map(|(size, align)| Filled::new(size, align, 5)));
                WITHOUT_SHELVES.store(SPARE.try_with(|_| ()).is_err(), Ordering::Relaxed);
            }
        }

        thread_local! {
            static LATE: Late = const { Late };
        }

        let uses_both = || {
            LATE.with(|_| ());
            drop(Filled::new(128, 128, 1));
        };
        thread::spawn(uses_both).join().unwrap();
        assert!(WITHOUT_SHELVES.load(Ordering::Relaxed));
    }

    #[test]
    fn what_grows_onto_a_shelf_and_off_it_keeps_its_bytes() {
        for (from, to) in [(100, 1024), (1024, 1025), (1025, 100), (640, 640), (640, 100)] {
            drop(Filled::new(from, 128, 9).grown(to));
        }
    }

    #[test]
    #[allow(unsafe_code)]
    fn what_is_to_be_zero_is_zero_though_it_was_used_before() {
        for (size, align) in LAYOUTS {
            drop(Filled::new(size, align, 255));
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the size is not zero; what is zeroed may be read.
            let block = unsafe { HEAP.alloc_zeroed(layout) };
            drop(Filled { block, layout, byte: 0 });
        }
    }
}
