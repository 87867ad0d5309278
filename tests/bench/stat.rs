//! Prints for each path how many nanoseconds one stat(2) of it takes: the
//! median of rounds in which the paths take turns.

use std::time::Instant;

const ROUNDS: usize = 101;
const CALLS: u32 = 20_000;

fn main() {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let mut times = vec![Vec::new(); paths.len()];
    for _ in 0..ROUNDS {
        for (path, times) in paths.iter().zip(&mut times) {
            let begin = Instant::now();
            for _ in 0..CALLS {
                std::hint::black_box(std::fs::symlink_metadata(path).expect(path));
            }
            times.push(begin.elapsed().as_nanos() / u128::from(CALLS));
        }
    }
    for mut times in times {
        times.sort_unstable();
        println!("{}", times[ROUNDS / 2]);
    }
}
