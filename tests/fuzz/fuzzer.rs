//! Runs the target that `NSKIT_FUZZ` names below libFuzzer: see the script `run`.

#![no_main]

#[path = "targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static TARGET: OnceLock<targets::Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("NSKIT_FUZZ").unwrap_or_default();
        let found = targets::ALL.iter().find(|(known, _)| *known == name);
        let _ = TARGET.set(found.unwrap_or_else(|| panic!("NSKIT_FUZZ={name}: no such target")).1);
    },
    |bytes: &[u8]| if let Some(target) = TARGET.get() { target(bytes) }
);
