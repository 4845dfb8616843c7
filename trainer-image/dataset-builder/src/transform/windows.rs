//! Windows that are counted. The engine's hold the rows of a frame, those of an open end all rows, without
//! asking for memory: a large table would end the container and not the query. Nodes below and above each
//! window note what goes in and what comes out; what lies between is asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{
    Transformed, TransformedResult as _, TreeNode as _, TreeNodeRecursion,
};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::StreamExt as _;

/// What asks for the memory, as errors name it.
pub const WINDOW: &str = "Window";
/// Bytes that a window may hold unasked: what is on its way through one that needs a few rows (16 MiB).
const FREE_BYTES: u64 = 16 << 20;
/// A window puts the batches that it holds together, and keeps both for that long.
const COPIES: u64 = 2;

/// Counts windows; runs after all other rules, so that none moves the nodes.
#[derive(Debug)]
pub struct CountWindows;

impl PhysicalOptimizerRule for CountWindows {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let is_window = node.downcast_ref::<WindowAggExec>().is_some()
                || node.downcast_ref::<BoundedWindowAggExec>().is_some();
            if !is_window {
                return Ok(Transformed::no(node));
            }
            let present = Present::default();
            let counted = |input: Arc<dyn ExecutionPlan>, side| -> Arc<dyn ExecutionPlan> {
                let present = present.clone();
                Arc::new(Counted {
                    input,
                    side,
                    present,
                })
            };
            let inputs = node.children().into_iter();
            let below = inputs
                .map(|input| counted(Arc::clone(input), Side::In))
                .collect();
            // What a window knows of its rows does not change.
            let same = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
            let window = node.replace_children(below, same)?;
            Ok(Transformed::yes(counted(window, Side::Out)))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "count_windows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What the window that is being started holds: the node above it begins, the one below finds it.
#[derive(Debug, Clone, Default)]
struct Present(Arc<Mutex<Option<Arc<Held>>>>);

impl Present {
    fn set(&self, held: Option<Arc<Held>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    fn get(&self) -> Option<Arc<Held>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Where a node stands.
#[derive(Debug, Clone, Copy)]
enum Side {
    /// Below the window.
    In,
    /// Above it.
    Out,
}

/// Hands on what comes, and notes how much it is.
#[derive(Debug)]
struct Counted {
    input: Arc<dyn ExecutionPlan>,
    side: Side,
    present: Present,
}

impl DisplayAs for Counted {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Counted: {:?}", self.side)
    }
}

impl ExecutionPlan for Counted {
    fn name(&self) -> &'static str {
        "Counted"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.into_iter().next();
        Ok(Arc::new(Self {
            input: input.unwrap_or_else(|| Arc::clone(&self.input)),
            side: self.side,
            present: self.present.clone(),
        }))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let held = match self.side {
            Side::In => self.present.get(),
            Side::Out => {
                let consumer = MemoryConsumer::new(WINDOW);
                let held = Arc::new(Held::new(consumer.register(context.memory_pool())));
                self.present.set(Some(Arc::clone(&held)));
                Some(held)
            }
        };
        let batches = self.input.execute(partition, context)?;
        let side = self.side;
        if matches!(side, Side::Out) {
            self.present.set(None);
        }
        let counted = batches.map(move |batch| -> Result<RecordBatch> {
            let batch = batch?;
            match (&held, side) {
                (Some(held), Side::In) => held.enters(&batch)?,
                (Some(held), Side::Out) => held.leaves(&batch)?,
                (None, _) => {}
            }
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            counted,
        )))
    }
}

/// Rows that went into a window and did not come out yet.
#[derive(Debug)]
struct Held {
    reservation: MemoryReservation,
    rows_in: AtomicU64,
    bytes_in: AtomicU64,
    rows_out: AtomicU64,
}

impl Held {
    fn new(reservation: MemoryReservation) -> Self {
        Self {
            reservation,
            rows_in: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            rows_out: AtomicU64::new(0),
        }
    }

    fn enters(&self, batch: &RecordBatch) -> Result<()> {
        let bytes: usize = batch.columns().iter().map(|column| bytes(column)).sum();
        self.rows_in
            .fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        self.ask()
    }

    fn leaves(&self, batch: &RecordBatch) -> Result<()> {
        self.rows_out
            .fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        self.ask()
    }

    /// Asks for what is held, by the length of a row so far.
    fn ask(&self) -> Result<()> {
        let rows = self.rows_in.load(Ordering::Relaxed);
        let row = self.bytes_in.load(Ordering::Relaxed) / rows.max(1);
        let held = rows.saturating_sub(self.rows_out.load(Ordering::Relaxed));
        let asked = (held * row * COPIES).saturating_sub(FREE_BYTES);
        self.reservation
            .try_resize(usize::try_from(asked).unwrap_or(usize::MAX))
    }
}

/// Bytes of the rows of a column: a slice has its own alone, since others have the rest.
fn bytes(column: &dyn Array) -> usize {
    match column.data_type() {
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let offsets = list.value_offsets();
            let at = |offset: Option<&i32>| {
                offset.map_or(0, |at| usize::try_from(*at).unwrap_or_default())
            };
            let first = at(offsets.first());
            let length = at(offsets.last()).saturating_sub(first);
            size_of_val(offsets) + bytes(&list.values().slice(first, length))
        }
        DataType::Struct(_) => {
            let columns = column.as_struct().columns().iter();
            columns.map(|column| bytes(column)).sum()
        }
        _ => {
            let slice = column.to_data().get_slice_memory_size();
            slice.unwrap_or_else(|_| column.get_array_memory_size())
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{ArrayRef, ListArray, StringArray};
    use datafusion::arrow::datatypes::Int32Type;
    use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool};

    use super::*;

    fn batch(length: usize, rows: usize) -> RecordBatch {
        let column: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(length); rows]));
        RecordBatch::try_from_iter([("text", column)]).unwrap()
    }

    #[test]
    fn rows_between_in_and_out_are_asked_for_and_those_that_left_are_not() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(32 << 20));
        let held = Held::new(MemoryConsumer::new(WINDOW).register(&pool));
        let mebibyte = batch(1 << 10, 1 << 10);
        for _ in 0..200 {
            held.enters(&mebibyte).unwrap();
            held.leaves(&mebibyte).unwrap();
            assert_eq!(pool.reserved(), 0);
        }
        for _ in 0..16 {
            held.enters(&mebibyte).unwrap();
        }
        assert!((16 << 20..18 << 20).contains(&pool.reserved()));
        let error = (0..16).find_map(|_| held.enters(&mebibyte).err());
        assert!(error.is_some(), "64 MiB of 32");
        drop(held);
        assert_eq!(pool.reserved(), 0);
    }

    #[test]
    fn slices_count_their_own_rows() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(100); 100]));
        let whole = bytes(&texts);
        assert!((10_000..11_000).contains(&whole), "{whole}");
        let slice = bytes(&texts.slice(40, 10));
        assert!((1000..1100).contains(&slice), "{slice}");
        let lists = (0..100).map(|_| Some(vec![Some(7); 100]));
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists));
        let slice = bytes(&lists.slice(40, 10));
        assert!((4000..4500).contains(&slice), "{slice}");
    }
}
