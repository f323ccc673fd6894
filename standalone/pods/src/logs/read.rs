//! Reading logs: from the end or from a time, following as lines come.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;

use super::{Journal, KEPT};

const BLOCK: usize = 64 << 10;

/// What to read, in the words of the Kubernetes API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Only lines written since.
    pub since: Option<Timestamp>,
    /// The run before the current one.
    pub previous: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
}

struct Reader {
    journal: Arc<Journal>,
    options: LogOptions,
    /// Files still to read after the present one, oldest first.
    rest: Vec<std::path::PathBuf>,
    file: Option<File>,
    pending: Vec<u8>,
    /// Whether the last line given out is still open.
    in_line: bool,
    left: u64,
    progress: tokio::sync::watch::Receiver<super::Progress>,
    rotations: u64,
}

/// The lines of `journal` that `options` asks for. Dropping the stream ends the reading.
pub(crate) fn stream(
    journal: Arc<Journal>,
    options: LogOptions,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let reader = Reader::open(journal, options);
    futures::stream::unfold(Some(reader), |reader| async move {
        let mut reader = match reader? {
            Ok(reader) => reader,
            Err(error) => return Some((Err(error), None)),
        };
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(Ok(reader)))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// The last lines of the log without times, for termination messages.
pub(crate) fn tail_text(journal: &Arc<Journal>, lines: usize, bytes: usize) -> String {
    let options = LogOptions { tail: Some(lines), ..LogOptions::default() };
    let Ok(mut reader) = Reader::open(journal.clone(), options) else { return String::new() };
    let mut text = Vec::new();
    while let Ok(true) = reader.fill() {
        text.extend_from_slice(&reader.take());
    }
    text.extend_from_slice(&reader.take());
    let from = text.len().saturating_sub(bytes);
    String::from_utf8_lossy(&text[from..]).into_owned()
}

// === impl Reader ===

impl Reader {
    fn open(journal: Arc<Journal>, options: LogOptions) -> io::Result<Self> {
        let mut progress = journal.progress.subscribe();
        let rotations = progress.borrow_and_update().rotations;
        let mut files = journal.files();
        let mut offset = 0;
        if let Some(lines) = options.tail {
            let (skip, at) = find_tail(&files, lines)?;
            files.drain(..skip);
            offset = at;
        }
        let mut rest = files.into_iter();
        let file = match rest.next() {
            Some(path) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                Some(file)
            }
            None => None,
        };
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        let rest = rest.collect();
        Ok(Self { journal, options, rest, file, pending: Vec::new(), in_line: false, left, progress, rotations })
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            let more = self.fill()?;
            let text = self.take();
            if !text.is_empty() {
                return Ok(Some(text));
            }
            if more {
                continue;
            }
            // At the end of all files. What was seen before this point is settled below, so no wake-up is lost.
            let seen = *self.progress.borrow_and_update();
            if seen.rotations != self.rotations {
                self.follow_rotation(seen.rotations)?;
                continue;
            }
            if self.fill()? {
                continue;
            }
            if !self.options.follow || seen.ended || self.progress.changed().await.is_err() {
                let text = self.take();
                return Ok((!text.is_empty()).then_some(text));
            }
        }
    }

    /// Reads a block; false at the end of the last file.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            let Some(file) = &mut self.file else { return Ok(false) };
            let start = self.pending.len();
            self.pending.resize(start + BLOCK, 0);
            let read = file.read(&mut self.pending[start..])?;
            self.pending.truncate(start + read);
            if read > 0 {
                return Ok(true);
            }
            if self.rest.is_empty() {
                return Ok(false);
            }
            self.file = Some(File::open(self.rest.remove(0))?);
        }
    }

    /// The open file was put aside and read to its end: goes on with what came after it.
    fn follow_rotation(&mut self, rotations: u64) -> io::Result<()> {
        let behind = usize::try_from(rotations - self.rotations).unwrap_or(KEPT).min(KEPT);
        self.rotations = rotations;
        let mut files = self.journal.files();
        self.rest = files.split_off(files.len().saturating_sub(behind));
        if !self.rest.is_empty() {
            // The rest of the old file first: lines may have come between the last read and its rotation.
            self.fill()?;
        }
        Ok(())
    }

    /// The complete records of what was read, as the client wants them.
    fn take(&mut self) -> Bytes {
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else { return Bytes::new() };
        let mut text = Vec::with_capacity(end);
        for record in self.pending[..end].split(|byte| *byte == b'\n') {
            let Some((time, partial, line)) = parse(record) else { continue };
            if self.options.since.is_some_and(|since| time.parse::<Timestamp>().is_ok_and(|time| time < since)) {
                continue;
            }
            if self.options.timestamps && !self.in_line {
                text.extend_from_slice(time.as_bytes());
                text.push(b' ');
            }
            text.extend_from_slice(line);
            if !partial {
                text.push(b'\n');
            }
            self.in_line = partial;
        }
        self.pending.drain(..=end);
        text.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= text.len() as u64;
        text.into()
    }
}

/// Time, whether the line goes on in the next record, and the line.
fn parse(record: &[u8]) -> Option<(&str, bool, &[u8])> {
    let mut fields = record.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let _stream = fields.next()?;
    let partial = fields.next()? == b"P";
    Some((time, partial, fields.next()?))
}

/// How many files to skip and where in the next one the last `lines` lines begin. Every record ends with a newline, so
/// the place is after the newline before them, counted from the end over all files.
fn find_tail(files: &[impl AsRef<Path>], lines: usize) -> io::Result<(usize, u64)> {
    let mut wanted = lines.saturating_add(1);
    let mut block = vec![0; BLOCK];
    for (n, path) in files.iter().enumerate().rev() {
        let mut file = File::open(path)?;
        let mut end = file.seek(SeekFrom::End(0))?;
        while end > 0 {
            let size = BLOCK.min(usize::try_from(end).unwrap_or(BLOCK));
            let start = end - size as u64;
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut block[..size])?;
            for at in (0..size).rev().filter(|at| block[*at] == b'\n') {
                wanted -= 1;
                if wanted == 0 {
                    return Ok((n, start + at as u64 + 1));
                }
            }
            end = start;
        }
    }
    Ok((0, 0))
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, TryStreamExt};

    use super::*;
    use crate::logs::Journals;

    async fn text(journal: &Arc<Journal>, options: LogOptions) -> String {
        let blocks: Vec<Bytes> = stream(journal.clone(), options).try_collect().await.unwrap();
        String::from_utf8(blocks.concat()).unwrap()
    }

    fn line(n: usize) -> Vec<u8> {
        format!("2026-11-20T10:00:{:02}.000000000Z stdout F line {n}\n", n % 60).into_bytes()
    }

    #[tokio::test]
    async fn tail_since_times_and_limits() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journals::default().begin(dir.path(), "u", "c", 0).unwrap();
        (0..10).for_each(|n| journal.append(&line(n)));
        let options = LogOptions { tail: Some(2), ..LogOptions::default() };
        assert_eq!(text(&journal, options).await, "line 8\nline 9\n");
        let options = LogOptions { since: "2026-11-20T10:00:09Z".parse().ok(), timestamps: true, ..Default::default() };
        assert_eq!(text(&journal, options).await, "2026-11-20T10:00:09.000000000Z line 9\n");
        let options = LogOptions { limit_bytes: Some(8), ..LogOptions::default() };
        assert_eq!(text(&journal, options).await, "line 0\nl");
        assert_eq!(text(&journal, LogOptions { tail: Some(0), ..Default::default() }).await, "");
        assert_eq!(tail_text(&journal, 1, 100), "line 9\n");
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journals::default().begin(dir.path(), "u", "c", 0).unwrap();
        journal.append(&line(0));
        let follow = LogOptions { follow: true, ..LogOptions::default() };
        let mut follower = Box::pin(stream(journal.clone(), follow));
        assert_eq!(follower.next().await.unwrap().unwrap(), "line 0\n");
        journal.append(&line(1));
        journal.state.lock().size = super::super::ROTATE_AT;
        journal.append(&line(2));
        journal.append(&line(3));
        journal.end();
        let rest: Vec<Bytes> = follower.try_collect().await.unwrap();
        assert_eq!(rest.concat(), b"line 1\nline 2\nline 3\n");
        let options = LogOptions { tail: Some(3), ..LogOptions::default() };
        assert_eq!(text(&journal, options).await, "line 1\nline 2\nline 3\n");
    }
}
