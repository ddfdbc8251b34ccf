//! How glibc's allocator gives memory back.
//!
//! By default its threshold for memory of its own (mmap) grows with what is freed, up to 32 MiB, and then the tables
//! of a policy come from the heap, which seldom shrinks: a gate with 1,000,000 names took 75 MiB, and 278 MiB after
//! five reloads. With the threshold held it takes 43 MiB and 44 MiB. Of allocators of their own, mimalloc made an
//! answer from the cache no cheaper, one by an upstream 4 µs cheaper, and a million names take 146 MiB.

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
