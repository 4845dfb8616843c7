//! Prints what is generated from the API's types: definitions and the list of reasons.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use graftwork_api::{conditions, crds};

const HELP: &str = "\
Prints the CustomResourceDefinitions as one YAML stream, or writes them as files.

Usage: print-crds [FOLDER]

  print-crds          all definitions to standard output
  print-crds .        crds/*.yaml, the chart's copies of them and docs/conditions.md below the
                      repository's root";

fn main() -> ExitCode {
    let argument = env::args().nth(1);
    let done = match argument.as_deref() {
        Some("-h" | "--help") => {
            println!("{HELP}");
            Ok(())
        }
        Some(root) => write(Path::new(root)),
        None => crds::all_yaml()
            .map(|text| print!("{text}"))
            .map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("print-crds: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(root: &Path) -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(root.join("docs"))?;
    for folder in crds::FOLDERS {
        let folder = root.join(folder);
        fs::create_dir_all(&folder)?;
        for (name, definition) in crds::all()? {
            fs::write(
                folder.join(format!("{name}.yaml")),
                serde_yaml_ng::to_string(&definition)?,
            )?;
        }
    }
    fs::write(
        root.join("docs/conditions.md"),
        conditions::conditions_markdown(),
    )?;
    Ok(())
}
