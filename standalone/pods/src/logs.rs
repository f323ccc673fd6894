//! Container logs: files of `time stream F line` lines, rotated by size, read back with all that `kubectl logs` asks.

mod read;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

pub use read::LogOptions;
pub(crate) use read::{stream, tail_text};

/// A file is put aside when it reaches this size.
const ROTATE_AT: u64 = 10 << 20;
/// Files put aside per container run.
const KEPT: usize = 4;
/// A longer line is stored in parts, all but the last marked `P`.
const LINE_LIMIT: usize = 16 << 10;

/// The log of one run of one container.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    size: u64,
}

/// What a reader that follows waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    written: u64,
    rotations: u64,
    ended: bool,
}

/// The journals of all containers: the current run and the one before it.
#[derive(Debug, Default)]
pub(crate) struct Journals {
    runs: Mutex<HashMap<(String, String), Runs>>,
}

#[derive(Debug, Default, Clone)]
struct Runs {
    current: Option<Arc<Journal>>,
    previous: Option<Arc<Journal>>,
}

// === impl Journals ===

impl Journals {
    /// Starts the log of a run; the run before stays readable, older ones are removed.
    pub(crate) fn begin(&self, dir: &Path, uid: &str, container: &str, run: i32) -> io::Result<Arc<Journal>> {
        let journal = Arc::new(Journal::create(dir.join(container), run)?);
        let mut runs = self.runs.lock();
        let entry = runs.entry((uid.to_owned(), container.to_owned())).or_default();
        if let Some(old) = entry.previous.take() {
            old.remove_files();
        }
        entry.previous = entry.current.replace(journal.clone());
        Ok(journal)
    }

    pub(crate) fn find(&self, uid: &str, container: &str, previous: bool) -> Option<Arc<Journal>> {
        let runs = self.runs.lock();
        let runs = runs.get(&(uid.to_owned(), container.to_owned()))?;
        if previous { runs.previous.clone() } else { runs.current.clone() }
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.runs.lock().retain(|(owner, _), _| owner != uid);
    }
}

// === impl Journal ===

impl Journal {
    fn create(dir: PathBuf, run: i32) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{run}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        let (progress, _) = watch::channel(Progress { written: size, ..Progress::default() });
        Ok(Self { path, state: Mutex::new(State { file: Some(file), size }), progress })
    }

    /// Appends the lines of `text`, which came from `stream`. `partial` lines are continued by the next.
    fn append(&self, records: &[u8]) {
        let mut state = self.state.lock();
        let mut rotated = 0;
        if state.size >= ROTATE_AT && self.rotate(&mut state).is_ok() {
            rotated = 1;
        }
        let Some(file) = state.file.as_mut() else { return };
        if let Err(error) = file.write_all(records) {
            tracing::warn!(path = %self.path.display(), %error, "log lines lost");
            return;
        }
        state.size += records.len() as u64;
        self.progress.send_modify(|progress| {
            progress.written += records.len() as u64;
            progress.rotations += rotated;
        });
    }

    fn rotate(&self, state: &mut State) -> io::Result<()> {
        for n in (1..KEPT).rev() {
            let _ = fs::rename(self.aside(n), self.aside(n + 1));
        }
        fs::rename(&self.path, self.aside(1))?;
        state.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        state.size = 0;
        Ok(())
    }

    fn aside(&self, n: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }

    /// Oldest first.
    fn files(&self) -> Vec<PathBuf> {
        (1..=KEPT).rev().map(|n| self.aside(n)).chain([self.path.clone()]).filter(|path| path.exists()).collect()
    }

    fn remove_files(&self) {
        for path in self.files() {
            let _ = fs::remove_file(path);
        }
    }

    /// No more lines will come.
    pub(crate) fn end(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// Copies what the process writes to the file until it closes the pipe.
    pub(crate) async fn copy(self: Arc<Self>, stream: &'static str, mut pipe: impl AsyncRead + Unpin) {
        let mut pending = Vec::with_capacity(4096);
        let mut records = Vec::new();
        loop {
            pending.reserve(4096);
            let read = pipe.read_buf(&mut pending).await.unwrap_or(0);
            let ended = read == 0;
            format_lines(&mut pending, &mut records, stream, Timestamp::now(), ended);
            if !records.is_empty() {
                self.append(&records);
                records.clear();
            }
            if ended {
                return;
            }
        }
    }
}

/// Moves the complete lines of `pending` (all of it if `ended`) to `records`.
fn format_lines(pending: &mut Vec<u8>, records: &mut Vec<u8>, stream: &str, now: Timestamp, ended: bool) {
    let mut start = 0;
    let mut record = |line: &[u8], tag: &str| {
        records.extend_from_slice(format!("{now:.9} {stream} {tag} ").as_bytes());
        records.extend_from_slice(line);
        records.push(b'\n');
    };
    loop {
        let rest = &pending[start..];
        match rest.iter().take(LINE_LIMIT + 1).position(|byte| *byte == b'\n') {
            Some(end) => {
                record(&rest[..end], "F");
                start += end + 1;
            }
            None if rest.len() >= LINE_LIMIT => {
                record(&rest[..LINE_LIMIT], "P");
                start += LINE_LIMIT;
            }
            None if ended && !rest.is_empty() => {
                record(rest, "P");
                start = pending.len();
            }
            None => break,
        }
    }
    pending.drain(..start);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_unfinished_lines_are_marked_partial() {
        let now: Timestamp = "2026-11-20T10:00:00.5Z".parse().unwrap();
        let mut pending = b"one\ntwo".to_vec();
        let mut records = Vec::new();
        format_lines(&mut pending, &mut records, "stdout", now, false);
        assert_eq!(records, b"2026-11-20T10:00:00.500000000Z stdout F one\n");
        assert_eq!(pending, b"two");
        records.clear();
        format_lines(&mut pending, &mut records, "stderr", now, true);
        assert_eq!(records, b"2026-11-20T10:00:00.500000000Z stderr P two\n");
        let mut pending = vec![b'x'; LINE_LIMIT + 2];
        pending.push(b'\n');
        records.clear();
        format_lines(&mut pending, &mut records, "stdout", now, false);
        assert_eq!(records.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert!(pending.is_empty());
    }
}
