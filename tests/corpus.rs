//! What fuzzing has found worth keeping, read once more: each file below tests/fuzz/corpus by the
//! target that its directory is named after. `make fuzz` looks for more.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "fuzz/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn everything_kept_is_still_true() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut known: Vec<_> = std::fs::read_dir(&corpus).unwrap().map(|e| e.unwrap().file_name()).collect();
    known.sort();
    assert_eq!(known, targets::ALL.map(|(name, _)| name));
    for (name, target) in targets::ALL {
        let mut files = 0;
        for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
            let path = entry.unwrap().path();
            // Said only if it fails.
            println!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
            files += 1;
        }
        assert!(files > 2, "{name}");
    }
}
