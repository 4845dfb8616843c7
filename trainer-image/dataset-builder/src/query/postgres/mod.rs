//! PostgreSQL: one read-only, repeatable-read transaction over one connection to an address that was
//! checked. Rows are taken as they arrive.

mod failures;
mod tls;
mod types;

use std::error::Error;
use std::time::Duration;

use futures::TryStreamExt as _;
use graftwork_contract::address::Guard;
use graftwork_contract::dataset::Query;
use graftwork_objects::connect::{self, ConnectError};
use serde_json::{Map, Value};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Config, Row, Statement};

use super::login::{Login, Tls};
use super::{Database, Record, Take};
use crate::failure::Failure;
use crate::lines::MAXIMUM_LINE_BYTES;
use failures::{During, failure};
use types::Reading;

/// Time to find the host, to connect and to log in.
const LOGIN_TIME: Duration = Duration::from_secs(30);
/// After the server's own limit, until we stop waiting for it to say so.
const GRACE: Duration = Duration::from_secs(10);
/// Time that a connection gets to say goodbye.
const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// A PostgreSQL server.
pub struct Postgres {
    source: String,
    login: Login,
    guard: Guard,
}

impl Postgres {
    /// The server of a source, which is connected to with the first question.
    pub fn new(source: String, login: Login, guard: Guard) -> Self {
        Self {
            source,
            login,
            guard,
        }
    }
}

impl Database for Postgres {
    fn ask(&self, query: &Query, take: &mut Take<'_>) -> Result<String, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::bug(format!("no runtime for a connection: {error}")))?;
        runtime.block_on(self.converse(query, take))
    }
}

impl Postgres {
    async fn converse(&self, query: &Query, take: &mut Take<'_>) -> Result<String, Failure> {
        let source = &self.source;
        let silent = |what: &str, limit: Duration| {
            Failure::source_unavailable(format!(
                "source {source}: the database did not {what} within {} s",
                limit.as_secs()
            ))
        };
        let connector = tls::Connector::new(&self.login).map_err(|problem| {
            Failure::source_denied(format!(
                "source {source}: {problem}; correct the Secret in spec.sources[{source}].postgres.secretRef, then change the annotation graftwork.dev/refresh"
            ))
        })?;
        let login = async {
            let stream = self.connect().await?;
            self.config()
                .connect_raw(stream, connector)
                .await
                .map_err(|error| failure(source, &error, During::Login))
        };
        let (client, connection) = timeout(LOGIN_TIME, login)
            .await
            .map_err(|_| silent("let us in", LOGIN_TIME))??;
        // It moves what client and server say to each other; an error of it comes to the client too.
        let mut connection = tokio::spawn(connection);
        let limit = Duration::from_secs(u64::from(query.timeout_seconds)) + GRACE;
        let answer = timeout(limit, self.read(&client, query, take)).await;
        drop(client);
        if timeout(GOODBYE_TIME, &mut connection).await.is_err() {
            connection.abort();
        }
        answer.map_err(|_| silent("answer", limit))?
    }

    /// Connects to an address of the host that may be connected to. The name is looked up once.
    async fn connect(&self) -> Result<TcpStream, Failure> {
        let (source, login) = (&self.source, &self.login);
        connect::to(&self.guard, &login.host, login.port)
            .await
            .map_err(|error| match error {
                ConnectError::Refused(_) | ConnectError::NoHost => Failure::source_denied(format!(
                    "source {source}: {error} (dataSources.allow); then change the annotation graftwork.dev/refresh"
                )),
                ConnectError::Unknown { .. } | ConnectError::Silent { .. } => {
                    Failure::source_unavailable(format!("source {source}: {error}"))
                }
            })
    }

    fn config(&self) -> Config {
        let login = &self.login;
        let mut config = Config::new();
        config
            .user(login.user.reveal())
            .dbname(login.database.reveal())
            .application_name("graftwork")
            .ssl_mode(match login.tls {
                Tls::Disable => SslMode::Disable,
                Tls::Require | Tls::VerifyFull => SslMode::Require,
            });
        if let Some(password) = &login.password {
            config.password(password.reveal());
        }
        config
    }

    async fn read(
        &self,
        client: &Client,
        query: &Query,
        take: &mut Take<'_>,
    ) -> Result<String, Failure> {
        let source = &self.source;
        let during = |rows| During::Rows {
            timeout_seconds: query.timeout_seconds,
            rows,
        };
        let began = |error: tokio_postgres::Error| failure(source, &error, during(0));
        // The forms in which the server writes what a query casts to text don't depend on its own settings.
        let begin = format!(
            "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
             SET LOCAL statement_timeout = '{}s'; SET LOCAL TimeZone = 'UTC'; \
             SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'iso_8601'",
            query.timeout_seconds
        );
        client.batch_execute(&begin).await.map_err(began)?;
        // The first query makes the snapshot that all later ones see.
        let now = client
            .query_one("SELECT transaction_timestamp()", &[])
            .await
            .map_err(began)?;
        let time = cell(&now, 0).map(|raw| types::value(&Reading::Timestamp, raw));
        let Some(Ok(Value::String(snapshot_time))) = time else {
            return Err(Failure::bug("the database's clock can't be read"));
        };
        let statement = client
            .prepare(&query.text)
            .await
            .map_err(|error| failure(source, &error, During::Prepare(&query.text)))?;
        let columns = columns(source, &statement)?;
        let answer = client
            .query_raw(&statement, std::iter::empty::<i32>())
            .await
            .map_err(began)?;
        let mut answer = std::pin::pin!(answer);
        let mut rows = 0_u64;
        while let Some(row) = answer
            .try_next()
            .await
            .map_err(|error| failure(source, &error, during(rows)))?
        {
            rows += 1;
            take(record(&columns, &row))?;
        }
        Ok(snapshot_time)
    }
}

/// A column of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    reading: Reading,
}

/// The columns of a query's answer.
fn columns(source: &str, statement: &Statement) -> Result<Vec<Column>, Failure> {
    let field = format!("spec.sources[{source}].postgres.query");
    let bad =
        |problem: String| Failure::query_failed(format!("source {source}: {field} {problem}"));
    if !statement.params().is_empty() {
        return Err(bad(
            "has parameters such as $1; write their values".to_owned()
        ));
    }
    let mut columns: Vec<Column> = Vec::new();
    for column in statement.columns() {
        let name = column.name().to_owned();
        if columns.iter().any(|known| known.name == name) {
            return Err(bad(format!(
                "has two columns named {name}; name them with AS"
            )));
        }
        let Some(reading) = types::reading(column.type_()) else {
            return Err(bad(format!(
                "has column {name} of type {}, which has no place in a row; leave it out, or cast it to text",
                column.type_()
            )));
        };
        columns.push(Column { name, reading });
    }
    if columns.is_empty() {
        return Err(bad("has no columns; write a SELECT".to_owned()));
    }
    Ok(columns)
}

fn record(columns: &[Column], row: &Row) -> Record {
    if row.raw_size_bytes() > MAXIMUM_LINE_BYTES {
        return Err(format!("is longer than {MAXIMUM_LINE_BYTES} bytes"));
    }
    let mut object = Map::new();
    for (index, column) in columns.iter().enumerate() {
        let value = match cell(row, index) {
            None => Value::Null,
            Some(raw) => types::value(&column.reading, raw)
                .map_err(|rule| format!("column {} {rule}", column.name))?,
        };
        object.insert(column.name.clone(), value);
    }
    Ok(object)
}

/// The bytes of a value; none where it is null.
fn cell(row: &Row, index: usize) -> Option<&[u8]> {
    row.try_get::<_, Raw<'_>>(index).ok().and_then(|raw| raw.0)
}

/// A value of any type, as it was sent.
struct Raw<'a>(Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use graftwork_contract::dataset::DatabaseKind;
    use graftwork_contract::exit::ExitCode;

    use super::super::login;
    use super::*;

    /// What a build hears of a database at this URI that nobody answers at.
    fn refused(uri: &str, allowed: &[&str]) -> Failure {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("uri"), uri).unwrap();
        let source = graftwork_contract::dataset::Source {
            name: "decisions".to_owned(),
            uri: "secret://warehouse/url".to_owned(),
            path: folder.path().to_str().unwrap().to_owned(),
            root: None,
            columns: std::collections::BTreeMap::new(),
            digest: None,
            query: None,
            remote: None,
            share: None,
        };
        let login = login::read(&source, DatabaseKind::Postgres).unwrap();
        let allowed: Vec<String> = allowed.iter().map(|it| (*it).to_owned()).collect();
        let guard = Guard::parse(&allowed).unwrap();
        let query = Query {
            database: DatabaseKind::Postgres,
            text: "SELECT 1".to_owned(),
            timeout_seconds: 1,
            maximum_rows: 1,
        };
        let database = Postgres::new("decisions".to_owned(), login, guard);
        let mut take = |_: Record| -> Result<(), Failure> { panic!("a row of nothing") };
        database.ask(&query, &mut take).unwrap_err()
    }

    #[test]
    fn a_host_that_is_not_everybodys_is_refused_before_anything_is_sent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in [
            "127.0.0.1",
            "localhost",
            "[::1]",
            "169.254.169.254",
            "10.0.0.1",
            "warehouse",
            "warehouse.databases.svc",
            "warehouse.databases.svc.cluster.local",
            "[::ffff:127.0.0.1]",
        ] {
            let failure = refused(&format!("postgres://ann:SECRET@{host}:{port}/db"), &[]);
            assert_eq!(
                (failure.code, failure.reason),
                (ExitCode::BadConfig, "SourceDenied"),
                "{host}"
            );
            assert!(failure.message.contains("dataSources.allow"), "{failure}");
            assert!(!failure.message.contains("SECRET"), "{failure}");
        }
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_server_that_is_away_is_worth_another_attempt() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let uri = format!("postgres://ann:SECRET@127.0.0.1:{port}/db");
        let failure = refused(&uri, &["127.0.0.0/8"]);
        assert_eq!(
            (failure.code, failure.reason),
            (ExitCode::Unavailable, "SourceUnavailable")
        );
        assert!(failure.message.contains("source decisions"), "{failure}");
        assert!(!failure.message.contains("SECRET"), "{failure}");
    }

    #[test]
    fn a_server_that_hangs_up_is_worth_another_attempt() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let uri = format!("postgres://ann:SECRET@127.0.0.1:{port}/db");
        let failure = refused(&uri, &["127.0.0.0/8"]);
        server.join().unwrap();
        assert_eq!(failure.reason, "SourceUnavailable", "{failure}");
    }

    #[test]
    fn a_server_without_tls_is_refused_unless_the_secret_allows_it() {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 8];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(b"N").unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            rest
        });
        let uri = format!("postgres://ann:SECRET@127.0.0.1:{port}/db");
        let failure = refused(&uri, &["127.0.0.0/8"]);
        assert_eq!(failure.reason, "SourceDenied", "{failure}");
        assert!(
            failure.message.contains("does not support TLS"),
            "{failure}"
        );
        // Neither user nor password was sent in the clear.
        assert!(server.join().unwrap().is_empty());
    }
}
