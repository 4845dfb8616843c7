//! `spec.transform`: one SELECT over the sources, each a table by its name. What it returns are the rows.
//!
//! The same inputs give the same rows on any machine: a table's rows come in an order that follows from their
//! content, whatever order they arrived in; the query runs in one partition on one thread, in memory of one
//! size; `now()` is the time of the snapshot, and functions that answer differently each time are refused. What
//! is left to the engine (the order of rows that `ORDER BY` calls equal, in which fractions are summed once a
//! `GROUP BY` has spilled) follows from these alone.
//!
//! Nothing but these tables can be read and nothing can be written: no statement but a query is taken, and
//! the engine has no catalog of files.

mod functions;
mod joins;
mod problem;
mod shape;
mod spilled;
mod table;
mod unnamed;
mod windows;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use datafusion::common::config::SpillCompression;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DataFusionError, TableReference};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::DiskManagerBuilder;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast;
use futures::StreamExt as _;
use graftwork_artifacts::rows::columns;
use graftwork_contract::Digest;
use graftwork_contract::dataset::{BuildConfig, REWARD_COLUMN, RejectedRow, TransformProvenance};
use jiff::Timestamp;

use crate::clock;
use crate::failure::Failure;
use crate::parquet_rows::objects;
use crate::pins::Pins;
use crate::reader::{Raw, Take as _};
use crate::row::Wanted;
use crate::shapes;
use crate::sources::{Collecting, RowTake, read_source};
use crate::spill::Scratch;
use crate::waiting::Waiting;
pub use functions::Given;
use joins::MergeJoins;
use spilled::Spills;
use table::{Gathering, Table, TableTake};
use windows::CountWindows;

/// What rows of the result are said to come from.
const RESULT: &str = "transform";
/// What `DataFusion` makes tables of out of nothing, however many rows are asked for.
const TABLE_FUNCTIONS: [&str; 2] = ["generate_series", "range"];

/// Bytes of rows that operators hand on at a time, about.
const BATCH_BYTES: u64 = 4 << 20;
/// Rows that operators hand on at a time, at most.
const BATCH_ROWS: u64 = 1024;

/// What a query goes by beside the sources.
#[derive(Debug)]
pub struct Means<'a> {
    /// What its functions need.
    pub given: Given,
    /// What its tables' columns hold.
    pub pins: &'a Pins,
}

/// Reads every source as a table and takes what the SQL makes of them: how many files were spilled on the way.
///
/// # Errors
/// Those of sources; SQL that can't be used, with line and column; a query that does not fit in memory and
/// can't spill, with what could not.
pub fn collect(
    config: &BuildConfig,
    Means { given, pins }: Means<'_>,
    wanted: Wanted<'_>,
    scratch: &Scratch,
    collecting: &mut Collecting,
) -> Result<u64, Failure> {
    let Some(transform) = &config.transform else {
        return Err(Failure::bug("there is no SQL"));
    };
    let sql = transform.sql.as_str();
    // What can't be read says so before anything is fetched.
    let statement = parse(sql)?;
    let mut tables = BTreeMap::new();
    for source in &config.sources {
        collecting.share = source.share;
        let mut gathering = Gathering::new(scratch);
        let mut take = TableTake {
            name: &source.name,
            gathering: &mut gathering,
            collecting: &mut *collecting,
            waiting: Waiting::default(),
        };
        let seen = read_source(config, source, scratch, &mut take)?;
        take.settle()?;
        collecting.noted.provenance.extend(seen);
        let mut columns = gathering.columns().clone();
        pins.hold(&source.name, &mut columns)?;
        // What a night's rows lack the query may still ask for.
        pins.remember(&source.name, &mut columns);
        let table = gathering.finish(&source.name, &columns.shapes(), scratch)?;
        collecting
            .noted
            .columns
            .insert(source.name.clone(), columns);
        tracing::info!(
            source = source.name,
            rows = table.rows,
            rejected = collecting.noted.rejected_rows(),
            "source read as a table"
        );
        tables.insert(source.name.clone(), table);
    }
    collecting.share = None;
    let now = snapshot(collecting, transform.now.as_deref());
    collecting.noted.transform = Some(TransformProvenance {
        digest: Digest::of(sql.as_bytes()),
        text: sql.to_owned(),
        now: now.to_string(),
    });
    let query = Query {
        config,
        wanted,
        scratch,
        tables,
        given,
        now,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::bug(format!("no runtime for a query: {error}")))?;
    runtime.block_on(query.run(statement, collecting))
}

/// The time that `now()` is: when the latest snapshot of a database was taken, or where there is none, when the
/// build was decided.
fn snapshot(collecting: &Collecting, decided: Option<&str>) -> Timestamp {
    let queries = collecting.noted.provenance.iter();
    queries
        .filter_map(|source| {
            source
                .query
                .as_ref()?
                .snapshot_time
                .parse::<Timestamp>()
                .ok()
        })
        .max()
        .or_else(|| decided?.parse::<Timestamp>().ok())
        .or_else(|| clock::rfc3339().parse::<Timestamp>().ok())
        .unwrap_or_default()
}

/// The one statement, which is a query.
fn parse(sql: &str) -> Result<Statement, Failure> {
    let wrong = |error: DataFusionError| problem::planning(&error, &BTreeMap::new());
    let mut statements = DFParserBuilder::new(sql)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(wrong)?;
    let first = statements.pop_front();
    if !statements.is_empty() {
        return Err(problem::refused("has several statements; write one SELECT"));
    }
    match first {
        Some(Statement::Statement(inner)) if matches!(*inner, ast::Statement::Query(_)) => {
            Ok(Statement::Statement(inner))
        }
        None => Err(problem::refused("holds no statement; write one SELECT")),
        Some(_) => Err(problem::refused(
            "is no SELECT; nothing else may be done to the sources",
        )),
    }
}

/// A query on its way.
struct Query<'a> {
    config: &'a BuildConfig,
    wanted: Wanted<'a>,
    scratch: &'a Scratch,
    tables: BTreeMap<String, Table>,
    given: Given,
    now: Timestamp,
}

impl Query<'_> {
    /// Takes the rows of the result: how many files were spilled.
    async fn run(self, statement: Statement, collecting: &mut Collecting) -> Result<u64, Failure> {
        let wrong = |error: DataFusionError| problem::planning(&error, &self.tables);
        let spills = Arc::new(Spills::new(self.scratch));
        let session = self.session(Arc::clone(&spills)).map_err(wrong)?;
        let state = session.state();
        let plan = state.statement_to_plan(statement).await.map_err(wrong)?;
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)
            .map_err(wrong)?;
        self.check_functions(&plan)?;
        let kept = self.kept_columns(&plan)?;
        let physical = state.create_physical_plan(&plan).await.map_err(wrong)?;
        let failed = |error: DataFusionError| problem::running(&error, self.scratch, self.memory());
        let mut batches = execute_stream(physical, session.task_ctx()).map_err(failed)?;
        let mut take = RowTake::new(self.wanted, collecting);
        let (mut line, piece) = (0, self.batch_rows());
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(failed)?;
            let batch = batch
                .project(&kept)
                .map_err(|error| failed(DataFusionError::from(error)))?;
            // A window hands on all of its rows at once; as objects they take many times as much.
            for start in (0..batch.num_rows()).step_by(piece) {
                let piece = batch.slice(start, piece.min(batch.num_rows() - start));
                let rows = objects(&piece).map_err(|problem| {
                    problem::refused(&format!("{problem}, which no row can hold; CAST it"))
                })?;
                for row in rows {
                    line += 1;
                    take.take(Raw::Record(Ok(row)), &|rule| RejectedRow {
                        source: RESULT.to_owned(),
                        file: None,
                        line,
                        rule,
                    })?;
                }
            }
        }
        // The last of them may be waiting for more.
        take.settle()?;
        tracing::info!(rows = line, spilled_files = spills.count(), "transformed");
        Ok(spills.count())
    }

    /// Bytes that operators may hold.
    fn memory(&self) -> usize {
        self.scratch.query_bytes()
    }

    /// Rows that operators hand on at a time: fewer where rows are long. It follows from the tables alone,
    /// so that it is the same everywhere.
    fn batch_rows(&self) -> usize {
        let longest = self.tables.values().map(Table::row_bytes).max();
        let rows = BATCH_BYTES / longest.unwrap_or(0).max(1);
        usize::try_from(rows.clamp(16, BATCH_ROWS)).unwrap_or(16)
    }

    fn session(&self, spills: Arc<Spills>) -> Result<SessionContext, DataFusionError> {
        let memory = self.memory();
        let mut config = SessionConfig::new()
            .with_target_partitions(1)
            .with_batch_size(self.batch_rows())
            .with_information_schema(false)
            .with_spill_compression(SpillCompression::Lz4Frame)
            .with_enforce_batch_size_in_joins(true)
            // Set aside by each sort for merging what it spilled.
            .with_sort_spill_reservation_bytes(memory / 8);
        let options = config.options_mut();
        options.sql_parser.collect_spans = true;
        options.sql_parser.map_string_types_to_utf8view = false;
        // One that never ends would end the Job.
        options.execution.enable_recursive_ctes = false;
        let disk = DiskManagerBuilder::default().with_temp_file_factory(spills);
        let pool = TrackConsumersPool::new(FairSpillPool::new(memory), NonZeroUsize::MIN);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_disk_manager_builder(disk)
            .build_arc()?;
        let mut rules = PhysicalOptimizer::new().rules;
        rules.insert(0, Arc::new(MergeJoins));
        rules.push(Arc::new(CountWindows));
        let state = SessionStateBuilder::new_with_default_features()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_physical_optimizer_rules(rules)
            .build();
        let session = SessionContext::new_with_state(state);
        // Rows come from sources, and end with them.
        for name in TABLE_FUNCTIONS {
            session.deregister_udtf(name);
        }
        for function in functions::all(&self.given, self.now) {
            session.register_udf(function);
        }
        for (name, table) in &self.tables {
            let name = TableReference::bare(name.as_str());
            session.register_table(name, Arc::new(table.clone()))?;
        }
        Ok(session)
    }

    /// Refuses functions that answer differently each time, and those that lack what they need.
    fn check_functions(&self, plan: &LogicalPlan) -> Result<(), Failure> {
        let mut problem = None;
        let outcome = plan.apply_with_subqueries(|node| {
            node.apply_expressions(|expression| {
                expression.apply(|part| {
                    let Expr::ScalarFunction(call) = part else {
                        return Ok(TreeNodeRecursion::Continue);
                    };
                    let name = call.func.name();
                    let is_volatile = call.func.signature().volatility == Volatility::Volatile;
                    let found = if is_volatile {
                        Some(format!(
                            "calls {name}(), whose answer is another one each time; the same sources must give the same rows"
                        ))
                    } else {
                        self.given.lacks(name).map(str::to_owned)
                    };
                    if found.is_none() {
                        return Ok(TreeNodeRecursion::Continue);
                    }
                    problem = found;
                    Ok(TreeNodeRecursion::Stop)
                })
            })
        });
        match (outcome, problem) {
            (_, Some(problem)) => Err(problem::refused(&problem)),
            (Err(error), None) => Err(problem::planning(&error, &self.tables)),
            (Ok(_), None) => Ok(()),
        }
    }

    /// The columns of the result that rows are made of.
    fn kept_columns(&self, plan: &LogicalPlan) -> Result<Vec<usize>, Failure> {
        let fields = plan.schema().fields();
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        let wanted = self.wanted.columns();
        let kept = |name: &&str| wanted.contains(name);
        let indices: Vec<usize> = (0..names.len())
            .filter(|index| names.get(*index).is_some_and(kept))
            .collect();
        let again = indices.iter().enumerate().find_map(|(at, index)| {
            let before = indices.get(..at).unwrap_or_default();
            let name = names.get(*index)?;
            let is_there = before.iter().any(|it| names.get(*it) == Some(name));
            is_there.then_some(*name)
        });
        if let Some(name) = again {
            return Err(problem::refused(&format!(
                "returns two columns named {name}; give one another name with AS"
            )));
        }
        let others = shapes::other_columns(self.config.format);
        let is_of_other_shape = others.iter().any(|name| names.contains(name));
        let own = columns(self.config.format)
            .iter()
            .copied()
            .filter(|_| !is_of_other_shape);
        let reward = self.config.reward.then_some(REWARD_COLUMN);
        let beside = [
            ("spec.split.groupColumn", self.wanted.group_column),
            ("spec.split.column", self.wanted.time_column),
            ("spec.balance.column", self.wanted.class_column),
            ("spec.format.reward", reward),
        ];
        let beside = beside
            .into_iter()
            .filter_map(|(field, name)| Some((field, name?)));
        let missing = own
            .map(|name| ("spec.format.type", name))
            .chain(beside)
            .find(|(_, name)| !names.contains(name));
        match missing {
            Some((field, name)) => Err(problem::missing(name, field, &names)),
            None => Ok(indices),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dealing::Part;
    use crate::nulls::Nulls;

    #[test]
    fn what_does_not_fit_in_memory_is_spilled() {
        let dir = tempfile::tempdir().unwrap();
        let rows = (0..20_000_u32).fold(String::new(), |text, n| {
            let hash = Digest::of(&n.to_be_bytes());
            text + &format!("{{\"text\": \"{0} {0} {0} {0}\"}}\n", hash.hex())
        });
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, rows).unwrap();
        let config: BuildConfig = serde_json::from_value(json!({
            "dataset": "topics",
            "fingerprint": Digest::of(b"any"),
            "format": "Text",
            "sources": [{"name": "many", "uri": "configmap://many/rows.jsonl", "path": path}],
            "transform": {"sql": "SELECT text FROM many ORDER BY text"},
            "validation": {"minimumRows": 1, "maximumInvalidPercent": "0"},
            "split": {"groupColumn": null, "trainPercent": 80, "validationPercent": 10, "testPercent": 10, "seed": 7},
        }))
        .unwrap();
        let (own_names, nulls) = (BTreeMap::new(), Nulls::default());
        let wanted = Wanted {
            format: config.format,
            group_column: None,
            time_column: None,
            class_column: None,
            reward: false,
            renamed: &own_names,
            screen: None,
            measured: None,
            nulls: Some(&nulls),
        };
        let spilled = |memory| {
            let scratch = Scratch::new(dir.path(), 64 << 20).with_query_bytes(memory);
            let mut collecting = Collecting::new(&scratch, Part::WHOLE);
            let means = Means {
                given: Given::default(),
                pins: &Pins::default(),
            };
            collect(&config, means, wanted, &scratch, &mut collecting).unwrap()
        };
        assert_eq!(spilled(1 << 30), 0);
        assert!(spilled(4 << 20) > 0);
    }

    #[test]
    fn only_one_query_is_read() {
        assert!(parse("SELECT 1; ").is_ok());
        for text in ["", "SELECT 1; SELECT 2", "DROP TABLE a", "COPY a TO 'b'"] {
            assert_eq!(parse(text).unwrap_err().reason, "QueryFailed", "{text}");
        }
    }
}
