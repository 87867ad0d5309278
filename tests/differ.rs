//! What others make of the same: the kernel of our maps, shadow of our reading of its files.
//!
//!     differ maps ROUNDS SEED      random maps, written to nested user namespaces
//!     differ grants FILES SEED     random files of subordinate ids, read by getsubids(1)
//!
//! As root in the private world. The same SEED makes the same; what differs is printed, with the
//! round to repeat: `differ maps 1 SEED+ROUND`.

// The rules of the tools do not bind their tests: no tool forks, prints or starts programs by itself.
#![allow(unsafe_code, clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::exit)]

#[path = "differ/grants.rs"]
mod grants;
#[path = "differ/maps.rs"]
mod maps;

use std::process::ExitCode;

/// A small repeatable generator (xorshift64*).
struct Random(u64);

impl Random {
    /// Seeds that lie beside each other begin apart (splitmix64).
    fn new(seed: u64) -> Random {
        let mixed = (seed.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Random((mixed ^ mixed >> 27) | 1)
    }

    /// A number below this one, which is not 0.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }

    /// One of these.
    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    /// Whether one in so many times.
    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, usize::try_from(self.below(at as u64 + 1)).unwrap());
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let (Some(rounds), Some(seed)) = (number(1), number(2)) else {
        eprintln!("usage: differ maps|grants ROUNDS SEED");
        return ExitCode::from(2);
    };
    let failed = if words[0] == "maps" { maps::run(rounds, seed) } else { grants::run(rounds, seed) };
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
