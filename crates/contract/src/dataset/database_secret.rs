//! Entries of the Secret of a query's database. Either [`URI`] is there, or the
//! parts are; the certificates may stand beside both.

/// A connection URI: the file that the Secret's key is mounted as.
pub const URI: &str = "uri";
/// The certificates that the server's has to come from, as PEM.
pub const AUTHORITY: &str = "ca.crt";
/// Host name or address.
pub const HOST: &str = "host";
/// Port, the database's own where it is left out.
pub const PORT: &str = "port";
/// Database, the user's name where it is left out.
pub const DATABASE: &str = "dbname";
/// User.
pub const USER: &str = "user";
/// User, as other operators write it.
pub const USERNAME: &str = "username";
/// Password.
pub const PASSWORD: &str = "password";
/// `disable`, `require` or `verify-full`.
pub const TLS: &str = "sslmode";
/// The parts.
pub const PARTS: [&str; 7] = [HOST, PORT, DATABASE, USER, USERNAME, PASSWORD, TLS];
