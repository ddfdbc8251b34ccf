use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::pin::{Pin, pin};

use nix::sys::stat::Mode;
use rustix::io::ReadWriteFlags;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::*;
use crate::console::tests::Heard;

/// Longer than any machine stands still: a test that waits for it hangs, and fails.
const LONG: Duration = Duration::from_secs(600);
/// A deadline that is meant to pass.
const SHORT: Duration = Duration::from_millis(20);

#[tokio::test]
async fn records_are_lines_in_their_order_and_the_file_is_not_for_everyone() {
    let place = Place::new();
    let audit = place.open();
    for number in 0..100 {
        audit.write(&line(number)).await.unwrap();
    }
    audit.hand_over(line(100)).await;
    audit.flush_and_close(LONG).await.unwrap();
    assert_eq!(place.numbers(), (0..=100).collect::<Vec<_>>());
    let mode = fs::metadata(&place.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    assert_eq!(
        audit.counts(),
        AuditCounts { written: 101, writes: audit.counts().writes, ..Default::default() }
    );
}

#[tokio::test]
async fn a_written_record_is_in_the_file() {
    let place = Place::new();
    let audit = place.open();
    audit.write(&line(7)).await.unwrap();
    assert_eq!(place.numbers(), [7], "with nothing flushed or closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_the_kernel_has_not_taken_is_not_acknowledged() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    let audit = Arc::new(fifo.open(WhenFull::Wait, 4 << 20, LONG));
    // More than the pipe holds: write(2) cannot end before somebody reads.
    let big = spawn_write(&audit, large());
    let mut first = vec![0; 1 << 19];
    reader.read_exact(&mut first).unwrap();
    let record = line(1);
    let mut small = pin!(audit.write(&record));
    assert!(poll_once(small.as_mut()).await.is_none());
    assert!(!big.is_finished(), "half of it is still to be read");
    let rest = read_to_marker(reader, line(1));
    big.await.unwrap().unwrap();
    small.await.unwrap();
    assert_eq!([first, rest.join().unwrap()].concat(), [large(), line(1)].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_wait_together_are_written_together() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    let audit = Arc::new(fifo.open(WhenFull::Wait, 4 << 20, LONG));
    let blocking = spawn_write(&audit, large());
    // Its first byte is there: the writer is busy with it, and with nothing else.
    reader.read_exact(&mut [0]).unwrap();
    for number in 0..1000 {
        audit.hand_over(line(number)).await;
    }
    let rest = read_to_marker(reader, line(999));
    blocking.await.unwrap().unwrap();
    audit.flush_and_close(LONG).await.unwrap();
    rest.join().unwrap();
    assert_eq!(audit.counts().written, 1001);
    assert!(audit.counts().writes <= 3, "{:?}", audit.counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rotation_under_load_loses_and_splits_nothing() {
    let place = Place::new().rotating(5_000, 1000);
    let audit = Arc::new(place.open());
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let audit = Arc::clone(&audit);
        tasks.spawn(async move {
            for number in 0..500 {
                audit.write(&line(task * 500 + number)).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    audit.flush_and_close(LONG).await.unwrap();
    let mut numbers = place.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..8000).collect::<Vec<_>>());
    assert!(place.files().len() > 20);
    assert_eq!(audit.counts().rotations as usize, place.files().len() - 1);
    for file in place.files() {
        assert!(fs::metadata(&file).unwrap().len() <= 5_000, "{}", file.display());
    }
}

#[tokio::test]
async fn as_many_full_files_are_kept_as_was_asked_for_and_those_are_the_youngest() {
    let place = Place::new().rotating(100, 3);
    let beyond = place.path.with_extension("jsonl.4");
    fs::write(&beyond, "from a time when more were kept\n").unwrap();
    let audit = place.open();
    for number in 0..100 {
        audit.write(&line(number)).await.unwrap();
    }
    audit.flush_and_close(LONG).await.unwrap();
    assert_eq!(place.files().len(), 4, "{:?}", place.files());
    let numbers = place.numbers();
    assert_eq!(numbers.last(), Some(&99));
    assert!(numbers.is_sorted(), "path.3 is the oldest: {numbers:?}");
}

#[tokio::test]
async fn a_record_larger_than_a_file_has_one_to_itself() {
    let place = Place::new().rotating(50, 10);
    let audit = place.open();
    let large = [vec![b'9'; 200], b"\n".to_vec()].concat();
    for record in [line(1), large.clone(), line(2)] {
        audit.write(&record).await.unwrap();
    }
    audit.flush_and_close(LONG).await.unwrap();
    let contents: Vec<_> = place.files().iter().map(|file| fs::read(file).unwrap()).collect();
    assert_eq!(contents, [line(1), large, line(2)]);
}

#[tokio::test]
async fn a_renamed_file_is_left_alone_after_reopening() {
    let place = Place::new();
    let audit = place.open();
    audit.write(&line(1)).await.unwrap();
    let moved = place.path.with_extension("moved");
    fs::rename(&place.path, &moved).unwrap();
    audit.write(&line(2)).await.unwrap();
    audit.reopen();
    audit.write(&line(3)).await.unwrap();
    audit.reopen();
    audit.write(&line(4)).await.unwrap();
    assert_eq!(fs::read(&moved).unwrap(), [line(1), line(2)].concat());
    assert_eq!(fs::read(&place.path).unwrap(), [line(3), line(4)].concat());
}

#[tokio::test]
async fn a_file_that_others_renamed_is_not_renamed_again_by_rotation() {
    let place = Place::new().rotating(120, 3);
    let audit = place.open();
    audit.write(&line(1)).await.unwrap();
    let moved = place.path.with_extension("moved");
    fs::rename(&place.path, &moved).unwrap();
    fs::write(&place.path, "somebody else's\n").unwrap();
    for number in 2..=4 {
        audit.write(&line(number)).await.unwrap();
    }
    audit.flush_and_close(LONG).await.unwrap();
    assert_eq!(fs::read(&moved).unwrap(), [line(1), line(2)].concat());
    let theirs = b"somebody else's\n".to_vec();
    assert_eq!(fs::read(&place.path).unwrap(), [theirs, line(3), line(4)].concat());
    assert_eq!(place.files().len(), 1);
}

#[tokio::test]
async fn a_reopening_that_fails_keeps_the_open_file() {
    let place = Place::new();
    let heard = Heard::default();
    let console = heard.console();
    let audit = Audit::open(place.settings(), console.clone()).unwrap();
    audit.write(&line(1)).await.unwrap();
    let moved = place.path.with_extension("moved");
    fs::rename(&place.path, &moved).unwrap();
    symlink(&moved, &place.path).unwrap();
    audit.reopen();
    audit.write(&line(2)).await.unwrap();
    assert_eq!(fs::read(&moved).unwrap(), [line(1), line(2)].concat());
    assert!(heard.text(&console).contains("the audit file stays as it is"), "{}", heard.text(&console));
}

#[tokio::test]
async fn a_rotation_that_fails_is_told_and_loses_nothing() {
    let place = Place::new().rotating(100, 1);
    let heard = Heard::default();
    let console = heard.console();
    let audit = Audit::open(place.settings(), console.clone()).unwrap();
    // A folder in the way of the first full file.
    fs::create_dir(place.path.with_extension("jsonl.1")).unwrap();
    for number in 0..100 {
        audit.write(&line(number)).await.unwrap();
    }
    assert_eq!(fs::read(&place.path).unwrap(), (0..100).flat_map(line).collect::<Vec<_>>());
    assert_eq!(fs::read_dir(place.folder.path()).unwrap().count(), 2, "nothing is left lying about");
    assert!(heard.text(&console).contains("cannot be rotated"), "{}", heard.text(&console));
}

#[tokio::test]
async fn what_is_written_goes_to_the_disk_and_leaves_memory() {
    // Beside this program: a folder for temporary files may be all memory.
    let beside = std::env::current_exe().unwrap();
    let folder = TempDir::new_in(beside.parent().unwrap()).unwrap();
    let place = Place { path: folder.path().join("audit.jsonl"), folder, ..Place::new() };
    let audit = place.open();
    let megabyte = [vec![b'x'; (1 << 20) - 1], vec![b'\n']].concat();
    for _ in 0..16 {
        audit.write(&megabyte).await.unwrap();
    }
    let file = fs::File::open(&place.path).unwrap();
    // Answers only from memory.
    let in_memory = |offset| {
        let mut byte = [0];
        let slices = &mut [IoSliceMut::new(&mut byte)];
        rustix::io::preadv2(&file, slices, offset, ReadWriteFlags::NOWAIT).is_ok()
    };
    assert!(in_memory((16 << 20) - 1), "the last record is there for whoever reads on");
    let gone = async {
        while in_memory(0) {
            // What is not on the disk yet goes with what comes after it.
            audit.write(&megabyte).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), gone).await.expect("the first record left memory");
}

#[tokio::test]
async fn a_rotation_that_was_cut_short_loses_no_file() {
    // Before the first of the numbered files was renamed, after one was, and with no place free.
    for (there, rotated) in [
        (&[(0, "cut"), (1, "one")][..], ["cut", "one"]),
        (&[(0, "cut"), (2, "one"), (3, "two")], ["cut", "one"]),
        (&[(0, "cut"), (1, "one"), (2, "two"), (3, "gone")], ["cut", "one"]),
    ] {
        let place = Place::new().rotating(100, 3);
        let numbered = |number| place.path.with_extension(format!("jsonl.{number}"));
        let read = |number| fs::read_to_string(numbered(number)).unwrap();
        for (number, what) in there {
            fs::write(numbered(*number), what).unwrap();
        }
        let audit = place.open();
        assert_eq!([read(1), read(2)], rotated, "{there:?}");
        assert!(!numbered(0).exists());
        for number in 0..3 {
            audit.write(&line(number)).await.unwrap();
        }
        assert_eq!([read(2), read(3)], rotated, "{there:?}");
    }
}

#[tokio::test]
async fn what_makes_way_for_a_full_file_is_not_opened_whatever_it_is() {
    let place = Place::new().rotating(100, 1);
    let first = place.path.with_extension("jsonl.1");
    // Whoever opens it for reading waits for a writer.
    nix::unistd::mkfifo(&first, Mode::S_IRWXU).unwrap();
    let audit = place.open();
    for number in 0..5 {
        timeout(Duration::from_secs(20), audit.write(&line(number))).await.unwrap().unwrap();
    }
    assert!(fs::symlink_metadata(&first).unwrap().is_file());
    assert_eq!(place.files().len(), 2);
}

#[tokio::test]
async fn half_a_record_of_an_earlier_run_gets_a_line_of_its_own() {
    let place = Place::new();
    fs::write(&place.path, "{\"v\":1,\"ti").unwrap();
    let audit = place.open();
    audit.write(&line(1)).await.unwrap();
    assert_eq!(fs::read(&place.path).unwrap(), [b"{\"v\":1,\"ti\n".to_vec(), line(1)].concat());
}

#[tokio::test]
async fn what_cannot_be_opened_says_why() {
    let place = Place::new();
    let link = place.path.with_extension("link");
    symlink(&place.path, &link).unwrap();
    let fifo = Fifo::new();
    let table: [(PathBuf, &str); 4] = [
        (place.folder.path().join("missing/audit.jsonl"), "the folder of the audit file does not exist"),
        (link, "a symbolic link cannot be rotated"),
        (place.folder.path().to_owned(), "not a file that records can be appended to"),
        (fifo.path.clone(), "nobody reads this FIFO"),
    ];
    for (path, why) in table {
        let settings = AuditSettings::new(target(&path, 1 << 20, 1));
        let error = Audit::open(settings, Heard::default().console()).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(path.to_str().unwrap()), "{error}");
    }
    assert!(!place.path.exists(), "nothing was created on the way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_waits_and_then_goes_on() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    let audit = Arc::new(fifo.open(WhenFull::Wait, 1000, LONG));
    let blocking = spawn_write(&audit, large());
    reader.read_exact(&mut [0]).unwrap();
    // One record holds all the room there is, and nothing is read: this one has to wait.
    let mut handing_over = pin!(audit.hand_over(line(1)));
    assert!(poll_once(handing_over.as_mut()).await.is_none());
    let rest = read_to_marker(reader, line(1));
    handing_over.await;
    blocking.await.unwrap().unwrap();
    audit.flush_and_close(LONG).await.unwrap();
    rest.join().unwrap();
    assert_eq!(audit.counts().dropped, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_drops_where_that_is_wanted_and_the_file_says_how_many() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    let audit = Arc::new(fifo.open(WhenFull::Drop, 1000, LONG));
    let blocking = spawn_write(&audit, large());
    reader.read_exact(&mut [0]).unwrap();
    for number in 0..7 {
        audit.hand_over(line(number)).await;
        audit.write(&line(number)).await.unwrap();
    }
    assert_eq!(audit.counts().dropped, 14);
    let told = read_to_marker(reader, b"\"event\":\"dropped\",\"kind\":\"audit\",\"records\":14}\n".to_vec());
    blocking.await.unwrap().unwrap();
    audit.flush_and_close(LONG).await.unwrap();
    told.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_session_whose_record_found_no_room_is_counted() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    let audit = Arc::new(fifo.open(WhenFull::Wait, 1000, LONG));
    let _blocking = spawn_write(&audit, large());
    reader.read_exact(&mut [0]).unwrap();
    {
        let handing_over = pin!(audit.hand_over(line(1)));
        assert!(poll_once(handing_over).await.is_none());
    }
    assert_eq!(audit.counts().dropped, 1);
}

#[tokio::test]
async fn a_full_disk_denies_within_the_deadline_and_is_told_once() {
    let heard = Heard::default();
    let console = heard.console();
    let settings =
        AuditSettings { deadline: SHORT, ..AuditSettings::new(target(Path::new("/dev/full"), 1, 1)) };
    let audit = Audit::open(settings, console.clone()).unwrap();
    assert!(audit.is_writable());
    for number in 0..3 {
        assert_eq!(audit.write(&line(number)).await, Err(AuditUnavailable));
    }
    assert!(!audit.is_writable());
    // On a busy machine the sessions may have given up before the thread has tried.
    let tried = async {
        while audit.counts().write_errors == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, tried).await.unwrap();
    assert_eq!(audit.flush_and_close(SHORT).await, Err(Unflushed { records: 3 }));
    assert_eq!(heard.text(&console).matches("the audit file ").count(), 1, "{}", heard.text(&console));
    assert_eq!(Reason::from(AuditUnavailable), Reason::AuditUnavailable);
}

#[tokio::test]
async fn a_full_disk_holds_up_nobody_where_records_may_be_dropped() {
    let settings = AuditSettings {
        deadline: SHORT,
        when_full: WhenFull::Drop,
        queue: 500,
        ..AuditSettings::new(target(Path::new("/dev/full"), 1, 1))
    };
    let mut audit = Audit::open(settings, Heard::default().console()).unwrap();
    audit.write(&line(0)).await.unwrap();
    // From here on the file is known not to take anything; a wait would last until the test is given up.
    audit.deadline = LONG;
    for number in 1..1000 {
        audit.write(&line(number)).await.unwrap();
    }
    let counts = audit.counts();
    assert_eq!(counts.dropped + counts.queued_records, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_in_the_middle_of_a_record_the_file_goes_on_whole() {
    let fifo = Fifo::new();
    let heard = Heard::default();
    let console = heard.console();
    let mut first_reader = fifo.reader();
    let settings = AuditSettings::new(target(&fifo.path, 1, 1));
    let audit = Arc::new(Audit::open(AuditSettings { deadline: LONG, ..settings }, console.clone()).unwrap());
    let interrupted = spawn_write(&audit, large());
    let mut read = vec![0; 1000];
    first_reader.read_exact(&mut read).unwrap();
    // What the pipe holds stays in it; the rest of the record cannot be written.
    drop(first_reader);
    while audit.is_writable() {
        tokio::task::yield_now().await;
    }
    let rest = read_to_marker(fifo.reader(), line(1));
    interrupted.await.unwrap().unwrap();
    audit.write(&line(1)).await.unwrap();
    assert_eq!([read, rest.join().unwrap()].concat(), [large(), line(1)].concat());
    assert!(audit.is_writable());
    let text = heard.text(&console);
    assert!(text.contains("cannot be written") && text.contains("written again"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reopening_elsewhere_ends_an_outage_and_begins_the_record_anew() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    let audit = Arc::new(fifo.open(WhenFull::Wait, 4 << 20, LONG));
    let interrupted = spawn_write(&audit, large());
    reader.read_exact(&mut [0]).unwrap();
    drop(reader);
    while audit.is_writable() {
        tokio::task::yield_now().await;
    }
    fs::rename(&fifo.path, fifo.path.with_extension("broken")).unwrap();
    audit.reopen();
    interrupted.await.unwrap().unwrap();
    assert_eq!(fs::read(&fifo.path).unwrap(), large(), "whole, in the new file");
}

#[tokio::test]
async fn a_closed_file_takes_no_more_and_says_so() {
    let place = Place::new();
    let audit = place.open();
    audit.flush_and_close(LONG).await.unwrap();
    assert_eq!(audit.write(&line(1)).await, Err(AuditUnavailable));
    audit.hand_over(line(2)).await;
    assert_eq!(audit.counts().dropped, 2);
    assert_eq!(place.numbers(), [0; 0]);
}

/// A folder for one audit file.
struct Place {
    folder: TempDir,
    path: PathBuf,
    rotate: u64,
    keep: u16,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("audit.jsonl");
        Self { folder, path, rotate: 1 << 30, keep: 10 }
    }

    fn rotating(self, rotate: u64, keep: u16) -> Self {
        Self { rotate, keep, ..self }
    }

    fn settings(&self) -> AuditSettings {
        AuditSettings { deadline: LONG, ..AuditSettings::new(target(&self.path, self.rotate, self.keep)) }
    }

    fn open(&self) -> Audit {
        Audit::open(self.settings(), Heard::default().console()).unwrap()
    }

    /// The files from the oldest to the one in use.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<(i64, PathBuf)> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter_map(|path| {
                let rest = path.to_str().unwrap().strip_prefix(self.path.to_str().unwrap())?;
                let number = rest.strip_prefix('.').map_or(0, |number| number.parse().unwrap());
                Some((-number, path))
            })
            .collect();
        files.sort();
        files.into_iter().map(|(_, path)| path).collect()
    }

    /// The numbers of all records in all files, in their order.
    fn numbers(&self) -> Vec<u32> {
        let text: String = self.files().iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        let number = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            u32::try_from(value["number"].as_u64().unwrap()).unwrap()
        };
        text.lines().map(number).collect()
    }
}

/// A FIFO, which stands for a disk whose speed and failures the test decides.
struct Fifo {
    _folder: TempDir,
    path: PathBuf,
}

impl Fifo {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        Self { _folder: folder, path }
    }

    /// Opens the reading end without waiting for a writer, then reads with waiting.
    fn reader(&self) -> fs::File {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        use std::os::unix::fs::OpenOptionsExt;
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&self.path)
            .unwrap();
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        file
    }

    fn open(&self, when_full: WhenFull, queue: u32, deadline: Duration) -> Audit {
        let settings = AuditSettings { target: target(&self.path, 1 << 30, 1), when_full, queue, deadline };
        Audit::open(settings, Heard::default().console()).unwrap()
    }
}

fn target(path: &Path, rotate: u64, keep: u16) -> AuditTarget {
    AuditTarget::File { path: path.to_owned(), rotate, keep: NonZeroU16::new(keep).unwrap() }
}

fn line(number: u32) -> Vec<u8> {
    let mut line = Vec::new();
    writeln!(line, r#"{{"number":{number},"padding":"................"}}"#).unwrap();
    line
}

fn spawn_write(audit: &Arc<Audit>, line: Vec<u8>) -> tokio::task::JoinHandle<Result<(), AuditUnavailable>> {
    let audit = Arc::clone(audit);
    tokio::spawn(async move { audit.write(&line).await })
}

/// A record that no pipe holds: `write(2)` of it ends when somebody has read.
fn large() -> Vec<u8> {
    [vec![b'x'; 1 << 20], b"\n".to_vec()].concat()
}

async fn poll_once<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

/// Reads on, in a thread of its own, until what was read ends with or holds `marker`.
fn read_to_marker(mut reader: fs::File, marker: Vec<u8>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut read = Vec::new();
        let mut piece = vec![0; 1 << 16];
        while !read.windows(marker.len()).rev().take(1 << 17).any(|window| window == marker) {
            match reader.read(&mut piece).unwrap() {
                0 => panic!("the writer has closed before the marker"),
                count => read.extend_from_slice(&piece[..count]),
            }
        }
        read
    })
}
