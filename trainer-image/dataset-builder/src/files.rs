//! The files of a source, in an order that is the same on every machine. No file is taken that lies
//! outside of the mounted folder: not when files are listed, and not when one is opened, which may be an hour
//! later.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use graftwork_contract::dataset::Source;
use graftwork_contract::glob::{Glob, is_pattern};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::failure::Failure;

/// Most files of one source.
pub(crate) const MAXIMUM_FILES: usize = 10_000;
/// Most entries of folders that are looked at for one source.
pub(crate) const MAXIMUM_ENTRIES: usize = 1_000_000;

/// A file of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its URI, for provenance.
    pub uri: String,
    /// Its path below the mounted folder, where a pattern found it.
    pub name: Option<String>,
}

/// Opens a file that was listed. Of a mounted folder the kernel follows no link that leaves it, whatever was put
/// there since; a pipe is not waited for.
///
/// # Errors
/// A file that is not there any more, is no file any more, or lies outside now.
pub fn open(source: &Source, file: &SourceFile) -> Result<File, Failure> {
    let root = source.root.as_deref().map(Path::new);
    let below = root.and_then(|root| Some((root, file.path.strip_prefix(root).ok()?)));
    let opened = match (root, below) {
        (None, _) => File::open(&file.path).map_err(|error| unreadable(source, &file.uri, &error)),
        (Some(_), None) => Err(outside(source, &file.uri)),
        (Some(_), Some((root, name))) => beneath(root, name).map_err(|errno| match errno {
            Errno::XDEV => outside(source, &file.uri),
            errno => unreadable(source, &file.uri, &errno.into()),
        }),
    }?;
    let metadata = opened
        .metadata()
        .map_err(|error| unreadable(source, &file.uri, &error))?;
    if metadata.is_file() {
        return Ok(opened);
    }
    Err(Failure::source_not_found(format!(
        "source {0}: spec.sources[{0}].uri: {1} is not a file any more; put it there again, and it is found by itself",
        source.name, file.uri
    )))
}

fn beneath(root: &Path, name: &Path) -> rustix::io::Result<File> {
    let folder = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&folder, name, flags, Mode::empty(), beneath).map(File::from)
}

/// The files of a source: the one that it names, or those that its pattern matches, by name.
///
/// # Errors
/// A file that is not there, is no file or lies outside; a pattern that matches nothing or too much.
pub fn files(source: &Source) -> Result<Vec<SourceFile>, Failure> {
    let path = Path::new(&source.path);
    let Some(root) = source.root.as_deref().map(Path::new) else {
        return Ok(vec![plain(source, path)?]);
    };
    let below = path.strip_prefix(root).ok().and_then(Path::to_str);
    match below {
        Some(pattern) if is_pattern(pattern) => matching(source, root, pattern),
        _ => {
            let file = plain(source, path)?;
            inside(source, root, path)?;
            Ok(vec![file])
        }
    }
}

fn plain(source: &Source, path: &Path) -> Result<SourceFile, Failure> {
    let metadata = path
        .metadata()
        .map_err(|error| unreadable(source, &source.uri, &error))?;
    if metadata.is_dir() {
        // It does not become a file by waiting.
        return Err(Failure::bad_config(format!(
            "source {}: spec.sources[{}].uri: {} is a folder; name a file, or a pattern such as {}/*.jsonl",
            source.name, source.name, source.uri, source.uri
        )));
    }
    if !metadata.is_file() {
        return Err(Failure::source_not_found(format!(
            "source {}: spec.sources[{}].uri: {} is not a file; name a file, or a pattern such as {}/*.jsonl",
            source.name, source.name, source.uri, source.uri
        )));
    }
    Ok(SourceFile {
        path: path.to_owned(),
        uri: source.uri.clone(),
        name: None,
    })
}

/// A link may lead out of the mounted folder, to the store or to the pod's own files.
fn inside(source: &Source, root: &Path, path: &Path) -> Result<(), Failure> {
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(|error| unreadable(source, &source.uri, &error))
    };
    if real(path)?.starts_with(real(root)?) {
        return Ok(());
    }
    Err(outside(source, &source.uri))
}

fn outside(source: &Source, uri: &str) -> Failure {
    Failure::bad_data(format!(
        "source {0}: spec.sources[{0}].uri: {uri} is a link that leaves its volume; put the file itself there",
        source.name
    ))
}

fn matching(source: &Source, root: &Path, pattern: &str) -> Result<Vec<SourceFile>, Failure> {
    let glob = Glob::parse(pattern).map_err(|error| {
        Failure::bad_config(format!("spec.sources[{}].uri: {error}", source.name))
    })?;
    let too_many = |what: &str, limit: usize| {
        Failure::bad_data(format!(
            "source {0}: spec.sources[{0}].uri: {1} leads to more than {limit} {what}; name a narrower pattern",
            source.name, source.uri
        ))
    };
    let mut names = Vec::new();
    let mut folders = vec![glob.folder()];
    let mut entries = 0;
    while let Some(folder) = folders.pop() {
        let listed = match root.join(&folder).read_dir() {
            Ok(listed) => listed,
            // The pattern's own folder is missing: it matches nothing.
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(unreadable(source, &source.uri, &error)),
        };
        for entry in listed {
            let entry = entry.map_err(|error| unreadable(source, &source.uri, &error))?;
            entries += 1;
            if entries > MAXIMUM_ENTRIES {
                return Err(too_many("entries", MAXIMUM_ENTRIES));
            }
            // A name that is no text can't be written into a spec either.
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let name = match folder.as_str() {
                "" => name,
                folder => format!("{folder}/{name}"),
            };
            // Of a link it says that it is one: folders behind links are not entered.
            let kind = entry
                .file_type()
                .map_err(|error| unreadable(source, &source.uri, &error))?;
            if kind.is_dir() {
                folders.push(name);
            } else if glob.matches(&name) {
                names.push(name);
            }
        }
        if names.len() > MAXIMUM_FILES {
            return Err(too_many("files", MAXIMUM_FILES));
        }
    }
    names.sort_unstable();
    let claim = source.uri.strip_suffix(pattern).unwrap_or(&source.uri);
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        let path = root.join(&name);
        let uri = format!("{claim}{name}");
        let metadata = path
            .metadata()
            .map_err(|error| unreadable(source, &uri, &error))?;
        if metadata.is_file() {
            inside(source, root, &path)?;
            found.push(SourceFile {
                path,
                uri,
                name: Some(name),
            });
        }
    }
    if found.is_empty() {
        return Err(Failure::source_not_found(format!(
            "source {}: spec.sources[{}].uri: no file matches {}; put one there, and it is found by itself, or correct \
             the URI",
            source.name, source.name, source.uri
        )));
    }
    Ok(found)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            // A name that no file can have.
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
    )
}

fn unreadable(source: &Source, uri: &str, error: &io::Error) -> Failure {
    let name = &source.name;
    if is_absent(error) {
        Failure::source_not_found(format!(
            "source {name}: spec.sources[{name}].uri: there is no file at {uri}; put it there, and it is found by \
             itself, or correct the URI"
        ))
    } else {
        Failure::unavailable(format!("source {name} ({uri}) can't be read: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(root: &Path, pattern: &str) -> Source {
        Source {
            name: "bulk".to_owned(),
            uri: format!("pvc://text/{pattern}"),
            path: format!("{}/{pattern}", root.display()),
            root: Some(root.display().to_string()),
            columns: std::collections::BTreeMap::new(),
            digest: None,
            query: None,
            remote: None,
            share: None,
        }
    }

    fn touch(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
    }

    #[test]
    fn a_pattern_finds_its_files_by_name_whatever_order_the_volume_has() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &[
                "b/2.csv",
                "b/10.csv",
                "a.csv",
                "b/c/1.csv",
                "b/x.txt",
                ".h/1.csv",
                "b/.2.csv",
            ],
        );
        let uris = |pattern: &str| -> Vec<String> {
            let found = files(&source(dir.path(), pattern)).unwrap();
            found.into_iter().map(|file| file.uri).collect()
        };
        assert_eq!(
            uris("b/*.csv"),
            ["pvc://text/b/10.csv", "pvc://text/b/2.csv"]
        );
        assert_eq!(
            uris("**/*.csv"),
            [
                "pvc://text/a.csv",
                "pvc://text/b/10.csv",
                "pvc://text/b/2.csv",
                "pvc://text/b/c/1.csv"
            ]
        );
        assert_eq!(uris("a.csv"), ["pvc://text/a.csv"]);
        for pattern in ["*.parquet", "nowhere/*.csv", "nowhere.csv"] {
            let failure = files(&source(dir.path(), pattern)).unwrap_err();
            assert_eq!(failure.reason, "SourceNotFound", "{pattern}");
            for part in [pattern, "spec.sources[bulk].uri", "correct the URI"] {
                assert!(failure.message.contains(part), "{part}: {failure}");
            }
        }
    }

    #[test]
    fn what_was_swapped_after_it_was_listed_is_not_followed_and_not_waited_for() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("claim");
        let secret = dir.path().join("secret.csv");
        touch(
            dir.path(),
            &[
                "secret.csv",
                "outside/1.csv",
                "claim/in/1.csv",
                "claim/1.csv",
                "claim/2.csv",
            ],
        );
        let listed = |pattern: &str| {
            let source = source(&root, pattern);
            let mut found = files(&source).unwrap();
            (source, found.remove(0))
        };
        let opened = |(source, file): &(Source, SourceFile)| open(source, file);
        let (one, deep) = (listed("1.csv"), listed("in/*.csv"));
        assert!(opened(&one).is_ok() && opened(&deep).is_ok());
        let path = root.join("1.csv");
        for target in [Path::new("../secret.csv"), secret.as_path()] {
            std::fs::remove_file(&path).unwrap();
            symlink(target, &path).unwrap();
            let failure = opened(&one).unwrap_err();
            assert!(failure.message.contains("leaves its volume"), "{failure}");
        }
        std::fs::remove_dir_all(root.join("in")).unwrap();
        symlink("../outside", root.join("in")).unwrap();
        let failure = opened(&deep).unwrap_err();
        assert!(failure.message.contains("leaves its volume"), "{failure}");
        // One that stays inside is as good as a file.
        std::fs::remove_file(&path).unwrap();
        symlink("2.csv", &path).unwrap();
        assert!(opened(&one).is_ok());
        std::fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let failure = opened(&one).unwrap_err();
        assert!(failure.message.contains("not a file any more"), "{failure}");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(opened(&one).unwrap_err().reason, "SourceNotFound");
    }

    #[test]
    fn no_link_leads_out_of_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("claim");
        touch(
            dir.path(),
            &["secret.csv", "outside/1.csv", "claim/in/1.csv"],
        );
        std::os::unix::fs::symlink(dir.path().join("secret.csv"), root.join("link.csv")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("folder")).unwrap();
        std::os::unix::fs::symlink("in/1.csv", root.join("fine.csv")).unwrap();
        for pattern in ["link.csv", "*.csv", "folder/1.csv"] {
            let failure = files(&source(&root, pattern)).unwrap_err();
            assert!(failure.message.contains("leaves its volume"), "{failure}");
        }
        assert_eq!(files(&source(&root, "fine.csv")).unwrap().len(), 1);
        let found = files(&source(&root, "**/1.csv")).unwrap();
        assert_eq!(found.len(), 1, "a linked folder is not entered");
    }
}
