//! Writes the examples, which are values of the API's types.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use graftwork_api::examples;

const HELP: &str = "\
Prints the example objects as YAML, or writes them as files.

Usage: print-examples [FOLDER]

  print-examples          all examples to standard output
  print-examples .        examples/*.yaml below the repository's root";

fn main() -> ExitCode {
    let argument = env::args().nth(1);
    let done = match argument.as_deref() {
        Some("-h" | "--help") => {
            println!("{HELP}");
            Ok(())
        }
        Some(root) => write(&Path::new(root).join("examples")),
        None => print(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("print-examples: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print() -> Result<(), Box<dyn std::error::Error>> {
    for example in examples::all()? {
        print!("---\n{}", example.yaml()?);
    }
    Ok(())
}

fn write(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(folder)?;
    for example in examples::all()? {
        fs::write(folder.join(example.file), example.yaml()?)?;
    }
    Ok(())
}
