//! Enums that may grow: a reader keeps a value it does not know, so that an older operator does
//! not lose sight of an object that a newer one wrote.

/// Declares a string enum with an `Other` arm.
///
/// `spec` enums print their values in the schema, so that the API server refuses others; `status`
/// enums print a bounded string, so that an operator may write a value that an older or newer
/// schema does not list.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident ($kind:ident) {
            $( $(#[$variant_meta:meta])* $variant:ident = $text:literal, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $( $(#[$variant_meta])* $variant, )+
            /// A value that this version does not know, kept as it was read.
            Other(String),
        }

        impl $name {
            /// Every known value, as written in YAML.
            pub const KNOWN: &'static [&'static str] = &[$($text),+];

            /// The value as written in YAML.
            pub fn as_str(&self) -> &str {
                match self {
                    $( Self::$variant => $text, )+
                    Self::Other(text) => text,
                }
            }

            /// Whether this version knows the value.
            pub fn is_known(&self) -> bool {
                !matches!(self, Self::Other(_))
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                match text.as_str() {
                    $( $text => Self::$variant, )+
                    _ => Self::Other(text),
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.as_str().to_owned()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                crate::enums::enum_schema!($kind, Self::KNOWN)
            }
        }
    };
}

macro_rules! enum_schema {
    (spec, $known:expr) => {
        schemars::json_schema!({"type": "string", "enum": $known})
    };
    (status, $known:expr) => {
        schemars::json_schema!({"type": "string", "maxLength": 63})
    };
}

pub(crate) use enum_schema;
pub(crate) use open_enum;
