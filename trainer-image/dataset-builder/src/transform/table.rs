//! A source as a table: its rows in an order that follows from their content, as Parquet on the scratch volume.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result as EngineResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::{StreamExt as _, future, stream};
use graftwork_contract::dataset::{MAXIMUM_COLUMNS, RejectedRow, Shape, Share, SourceColumns};
use graftwork_contract::digest::canonical_object;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::shape::{self, Lossy};
use super::unnamed::Unnamed;
use crate::dealing::Dealing;
use crate::failure::Failure;
use crate::pins::masked;
use crate::reader::{Raw, Take};
use crate::sources::Collecting;
use crate::spill::sorter::Sorter;
use crate::spill::{Scratch, damaged};
use crate::waiting::{JUDGED, Waiter, Waiting};

/// Bytes of the hash that a record begins with, so that rows are compared quickly.
const PREFIX: usize = 8;
/// Rows that become columns at a time, at most, and their bytes, about.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of a row group that are held before they are written, about.
const GROUP_BYTES: usize = 32 << 20;

/// Rows of a source on their way.
#[derive(Debug)]
pub struct Gathering {
    sorter: Sorter,
    columns: SourceColumns,
    bytes: u64,
    /// Where the first whole number was that fractions would not hold, by its path; so many as there may be columns.
    long: BTreeMap<String, RejectedRow>,
}

/// Takes the records of a source into its table. They wait until there are enough of them to be read on all cores.
pub struct TableTake<'a> {
    /// The source's name.
    pub name: &'a str,
    /// Its table.
    pub gathering: &'a mut Gathering,
    /// What is noted, and the source's share.
    pub collecting: &'a mut Collecting,
    /// What waits.
    pub waiting: Waiting,
}

impl TableTake<'_> {
    /// Takes the records that wait.
    ///
    /// # Errors
    /// Those of the scratch volume; more columns than a table has.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let waiting = std::mem::take(&mut self.waiting);
        let share = self.collecting.share;
        for mut piece in waiting.pieces(|rows| Piece::of(rows, share)) {
            self.collecting.noted.beyond_weight += piece.beyond_weight;
            for row in piece.rejected.drain(..) {
                self.collecting.noted.reject(row);
            }
            self.gathering.add(piece, self.name)?;
        }
        Ok(())
    }
}

/// Some rows as they are sorted, with their columns.
#[derive(Debug, Default)]
struct Piece {
    columns: SourceColumns,
    records: Vec<Vec<u8>>,
    beyond_weight: u64,
    rejected: Vec<RejectedRow>,
    /// As [`Gathering::long`].
    long: BTreeMap<String, RejectedRow>,
}

impl Piece {
    fn of(rows: &[Waiter], share: Option<Share>) -> Self {
        let mut piece = Self::default();
        for waiter in rows {
            match &*waiter.record() {
                Ok(object) => piece.add(object, share, &waiter.place),
                Err(rule) => {
                    let (rule, place) = (rule.clone(), waiter.place.clone());
                    piece.rejected.push(RejectedRow { rule, ..place });
                }
            }
        }
        piece
    }

    fn add(&mut self, row: &Map<String, Value>, share: Option<Share>, place: &RejectedRow) {
        let canonical = canonical_object(row);
        if share.is_some_and(|it| !it.takes(&canonical)) {
            self.beyond_weight += 1;
            return;
        }
        self.columns.note(row, |_, shape, value| shape.note(value));
        for (name, value) in row.iter().filter(|(_, value)| shape::has_long(value)) {
            shape::long_paths(value, name, &mut |path| {
                self.long.entry(path).or_insert_with(|| place.clone());
            });
        }
        let hash = Sha256::digest(&canonical);
        let mut record = Vec::with_capacity(PREFIX + canonical.len());
        record.extend(hash.iter().take(PREFIX));
        record.extend_from_slice(canonical.as_bytes());
        self.records.push(record);
    }
}

impl Take for TableTake<'_> {
    fn columns(&self) -> Option<Vec<&str>> {
        None
    }

    fn dealing(&mut self) -> &mut Dealing {
        &mut self.collecting.dealing
    }

    fn take(&mut self, raw: Raw<'_>, at: &dyn Fn(String) -> RejectedRow) -> Result<(), Failure> {
        self.waiting.push(raw, at(String::new()));
        if self.waiting.is_full(JUDGED) {
            return self.settle();
        }
        Ok(())
    }
}

impl Gathering {
    /// No rows yet.
    pub fn new(scratch: &Scratch) -> Self {
        Self {
            sorter: Sorter::new(scratch),
            columns: SourceColumns::default(),
            bytes: 0,
            long: BTreeMap::new(),
        }
    }

    /// Its columns, as far as it came.
    pub fn columns(&self) -> &SourceColumns {
        &self.columns
    }

    fn add(&mut self, piece: Piece, source: &str) -> Result<(), Failure> {
        self.columns.add(piece.columns);
        if self.columns.columns.len() > MAXIMUM_COLUMNS {
            return Err(Failure::bad_data(format!(
                "source {source}: its rows have more than {MAXIMUM_COLUMNS} columns, which is what spec.transform can read"
            )));
        }
        for (path, place) in piece.long {
            if self.long.len() < MAXIMUM_COLUMNS {
                self.long.entry(path).or_insert(place);
            }
        }
        for record in &piece.records {
            self.bytes += record.len().saturating_sub(PREFIX) as u64;
            self.sorter.push(record)?;
        }
        Ok(())
    }

    /// The table of a source, whose columns hold these.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn finish(
        self,
        source: &str,
        shapes: &BTreeMap<String, Shape>,
        scratch: &Scratch,
    ) -> Result<Table, Failure> {
        let fields = shape::fields(shapes);
        let schema = Arc::new(Schema::new(fields));
        // Without columns there is nothing to write, and nothing to ask for.
        if schema.fields().is_empty() {
            return Ok(Table {
                schema,
                file: None,
                rows: 0,
                bytes: 0,
                lossy: BTreeMap::new(),
            });
        }
        let mut spool = Spool::create(&schema, scratch)?;
        let sorted = self.sorter.finish()?;
        let mut records = sorted.records()?;
        while let Some(record) = records.next_record()? {
            let json = record.get(PREFIX..).unwrap_or_default();
            spool.push(json)?;
        }
        let (file, lossy) = spool.finish()?;
        let long = self.long;
        let lossy = lossy.into_iter().map(|(column, path)| {
            let problem = loses_digits(source, &path, long.get(&path));
            (column, problem)
        });
        let lossy = lossy.collect();
        Ok(Table {
            schema,
            file: Some(file),
            rows: self.columns.rows,
            bytes: self.bytes,
            lossy,
        })
    }
}

/// What is wrong with numbers of a source, the first of which was there.
fn loses_digits(source: &str, path: &str, first: Option<&RejectedRow>) -> String {
    let rule = format!(
        "column {} is DOUBLE for its fractions, which does not hold a whole number like this one (past 2^53); write its numbers as texts in the source and CAST them to DECIMAL in spec.transform, or don't select it",
        masked(path)
    );
    match first.cloned() {
        Some(place) => RejectedRow { rule, ..place }.to_string(),
        None => format!("source {source}: {rule}"),
    }
}

/// A Parquet file that is being written.
struct Spool<'a> {
    schema: &'a SchemaRef,
    scratch: &'a Scratch,
    writer: ArrowWriter<std::fs::File>,
    rows: Vec<Map<String, Value>>,
    bytes: usize,
    lossy: Lossy,
}

impl<'a> Spool<'a> {
    fn create(schema: &'a SchemaRef, scratch: &'a Scratch) -> Result<Self, Failure> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        let writer = ArrowWriter::try_new(scratch.file()?, Arc::clone(schema), Some(properties))
            .map_err(|error| unwritten(&error, scratch))?;
        Ok(Self {
            schema,
            scratch,
            writer,
            rows: Vec::new(),
            bytes: 0,
            lossy: Lossy::new(),
        })
    }

    fn push(&mut self, json: &[u8]) -> Result<(), Failure> {
        self.rows
            .push(serde_json::from_slice(json).map_err(|_| damaged())?);
        self.bytes += json.len();
        if self.rows.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Failure> {
        let failed = |error: &ArrowError| Failure::bug(format!("rows are no table: {error}"));
        let columns = shape::columns(&self.rows, self.schema.fields(), &mut self.lossy)
            .map_err(|error| failed(&error))?;
        let batch = RecordBatch::try_new(Arc::clone(self.schema), columns)
            .map_err(|error| failed(&error))?;
        self.rows.clear();
        self.bytes = 0;
        let mut written = self.writer.write(&batch);
        if written.is_ok() && self.writer.in_progress_size() > GROUP_BYTES {
            written = self.writer.flush();
        }
        written.map_err(|error| unwritten(&error, self.scratch))
    }

    /// The file, and the columns that lost digits in it.
    fn finish(mut self) -> Result<(Unnamed, Lossy), Failure> {
        if !self.rows.is_empty() {
            self.write()?;
        }
        let scratch = self.scratch;
        let file = self
            .writer
            .into_inner()
            .map_err(|error| unwritten(&error, scratch))?;
        Ok((Unnamed::new(file), self.lossy))
    }
}

/// An error of the scratch volume, or a defect.
fn unwritten(error: &ParquetError, scratch: &Scratch) -> Failure {
    if let ParquetError::External(inner) = error
        && let Some(error) = inner.downcast_ref::<std::io::Error>()
    {
        return scratch.failed(error);
    }
    Failure::bug(format!("a table can't be written: {error}"))
}

/// A source whose rows can be asked for.
#[derive(Debug, Clone)]
pub struct Table {
    schema: SchemaRef,
    /// None: there are no rows.
    file: Option<Unnamed>,
    /// How many rows it has.
    pub rows: u64,
    bytes: u64,
    /// What is wrong with columns that don't hold what their rows had.
    lossy: BTreeMap<String, String>,
}

impl Table {
    /// Bytes of a row, on average.
    pub fn row_bytes(&self) -> u64 {
        self.bytes / self.rows.max(1)
    }

    /// The names of its columns.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
    }
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(indices) => Arc::new(self.schema.project(indices)?),
            None => Arc::clone(&self.schema),
        };
        // Others may be what they are.
        let mut asked = schema.fields().iter();
        if let Some(problem) = asked.find_map(|field| self.lossy.get(field.name())) {
            let failure = Failure::bad_data(problem.as_str());
            return Err(DataFusionError::External(Box::new(failure)));
        }
        let scan = Scan {
            schema: Arc::clone(&schema),
            file: self.file.clone(),
        };
        let plan = StreamingTableExec::try_new(
            schema,
            vec![Arc::new(scan)],
            None,
            Vec::new(),
            false,
            limit,
        )?;
        Ok(Arc::new(plan))
    }
}

/// Some columns of a table, read from the first row on each time.
#[derive(Debug)]
struct Scan {
    schema: SchemaRef,
    file: Option<Unnamed>,
}

impl Scan {
    fn open(&self, file: &Unnamed, batch_rows: usize) -> Result<ParquetRecordBatchReader, Failure> {
        let failed = |error: ParquetError| Failure::bug(format!("a table can't be read: {error}"));
        let builder = ParquetRecordBatchReaderBuilder::try_new(file.clone()).map_err(failed)?;
        let fields = builder.schema().fields();
        let is_wanted = |index: &usize| {
            let field = fields.get(*index);
            field.is_some_and(|field| self.schema.field_with_name(field.name()).is_ok())
        };
        let indices: Vec<usize> = (0..fields.len()).filter(is_wanted).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), indices);
        builder
            .with_projection(mask)
            .with_batch_size(batch_rows)
            .build()
            .map_err(failed)
    }
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let schema = Arc::clone(&self.schema);
        let batch_rows = context.session_config().batch_size();
        let opened = self.file.as_ref().map(|file| self.open(file, batch_rows));
        let batches = match opened {
            None => stream::empty().boxed(),
            Some(Err(failure)) => {
                let error = DataFusionError::External(Box::new(failure));
                stream::once(future::ready(Err(error))).boxed()
            }
            Some(Ok(batches)) => {
                let wanted = Arc::clone(&schema);
                stream::iter(batches)
                    .map(move |batch| arranged(&batch?, &wanted))
                    .boxed()
            }
        };
        Box::pin(RecordBatchStreamAdapter::new(schema, batches))
    }
}

/// The columns in the order in which they were asked for.
fn arranged(batch: &RecordBatch, schema: &SchemaRef) -> EngineResult<RecordBatch> {
    let columns = schema.fields().iter().map(|field| {
        let column = batch.column_by_name(field.name());
        column.cloned().ok_or_else(|| {
            let failure = Failure::bug("a table lacks a column of its own");
            DataFusionError::External(Box::new(failure))
        })
    });
    let columns = columns.collect::<EngineResult<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(
        Arc::clone(schema),
        columns,
        &options,
    )?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(rows: &[Value], scratch: &Scratch) -> Table {
        let mut gathering = Gathering::new(scratch);
        let mut piece = Piece::default();
        for (row, line) in rows.iter().zip(1..) {
            piece.add(row.as_object().unwrap(), None, &place(line));
        }
        gathering.add(piece, "rows").unwrap();
        let shapes = gathering.columns().shapes();
        gathering.finish("rows", &shapes, scratch).unwrap()
    }

    fn place(line: u64) -> RejectedRow {
        RejectedRow {
            source: "rows".to_owned(),
            file: None,
            line,
            rule: String::new(),
        }
    }

    fn texts(table: &Table) -> Vec<String> {
        let scan = Scan {
            schema: Arc::clone(&table.schema),
            file: None,
        };
        let reader = scan.open(table.file.as_ref().unwrap(), 7).unwrap();
        reader
            .flat_map(|batch| crate::parquet_rows::objects(&batch.unwrap()).unwrap())
            .map(|row| canonical_object(&row))
            .collect()
    }

    #[test]
    fn the_order_of_a_table_is_that_of_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows: Vec<Value> = (0..500).map(|n| json!({"n": n, "text": "é"})).collect();
        let large = Scratch::new(dir.path(), 1 << 30);
        let expected = texts(&table(&rows, &large));
        rows.reverse();
        let small = Scratch::new(dir.path(), 0);
        assert_eq!(texts(&table(&rows, &small)), expected);
        assert_eq!(expected.len(), 500);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_column_whose_numbers_fractions_do_not_hold_is_told_with_the_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path(), 1 << 30);
        let long = i64::MAX;
        let rows = [
            json!({"id": 1, "n": 0.5, "who": {"n": 1}}),
            json!({"id": long, "n": 2, "who": {"n": long}}),
            json!({"id": 2, "n": -long, "who": {"n": 2}}),
            json!({"id": 3, "n": long, "who": {"n": 0.5}}),
        ];
        let mut lossy = table(&rows, &scratch).lossy.into_iter();
        for (expected, path, line) in [("n", "n", 3), ("who", "who.n", 2)] {
            let (column, problem) = lossy.next().unwrap();
            assert_eq!(column, expected);
            let words = format!("source rows line {line}: column {path} is DOUBLE");
            assert!(problem.starts_with(&words), "{problem}");
        }
        assert_eq!(lossy.next(), None);
        let whole = table(&rows[1..3], &scratch);
        assert!(whole.lossy.is_empty(), "{:?}", whole.lossy);
    }

    #[test]
    fn a_source_without_rows_is_a_table_without_columns() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(&[], &Scratch::new(dir.path(), 0));
        assert_eq!((table.columns().count(), table.rows), (0, 0));
    }

    #[test]
    fn too_many_columns_are_refused_with_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut gathering = Gathering::new(&Scratch::new(dir.path(), 0));
        let row: Map<String, Value> = (0..=MAXIMUM_COLUMNS)
            .map(|n| (format!("c{n}"), json!(n)))
            .collect();
        let mut piece = Piece::default();
        piece.add(&row, None, &place(1));
        let failure = gathering.add(piece, "wide").unwrap_err();
        assert_eq!(failure.reason, "DataError");
        assert!(failure.message.contains("source wide"), "{failure}");
        assert!(failure.message.contains("1024"), "{failure}");
    }
}
