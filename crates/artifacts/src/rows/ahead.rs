//! Batches of a file that are decoded while rows are made of those before them.

use std::io;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

/// Batches that wait, beside the one that is being decoded.
const WAITING: usize = 2;

/// A batch, or why it can't be decoded.
type Batch = Result<RecordBatch, ArrowError>;

/// Batches in their order. The thread that decodes them ends with this.
#[derive(Debug)]
pub(super) struct Ahead {
    batches: Receiver<Batch>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// Begins to decode.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(batches: ParquetRecordBatchReader) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(WAITING);
        let thread = thread::Builder::new().spawn(move || {
            for batch in batches {
                if sender.send(batch).is_err() {
                    // Nobody asks for more.
                    return;
                }
            }
        })?;
        Ok(Self {
            batches: receiver,
            thread: Some(thread),
        })
    }
}

impl Iterator for Ahead {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        if let Ok(batch) = self.batches.recv() {
            return Some(batch);
        }
        // A decoder that panicked has not come to the end.
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
        None
    }
}
