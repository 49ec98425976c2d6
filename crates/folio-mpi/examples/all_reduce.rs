//! Measures a sum over ranks: `mpirun -n 2 all_reduce [MILLIONS]`.

use std::time::Instant;

use folio_mpi::{Communicator, MpiRanks};

fn main() -> folio_mpi::Result<()> {
    let millions: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10);
    let Some(ranks) = MpiRanks::join()? else {
        println!("start this with mpirun or srun");
        return Ok(());
    };
    let mut values: Vec<f32> = (0..millions * 1_000_000).map(|i| (i % 1000 + ranks.rank()) as f32).collect();
    let want: f32 = (0..ranks.world_size()).map(|rank| (123 + rank) as f32).sum();
    let mut seconds = Vec::new();
    for _ in 0..5 {
        let mut sums = values.clone();
        let start = Instant::now();
        ranks.all_reduce(&mut sums);
        seconds.push(start.elapsed().as_secs_f64());
        assert_eq!(sums[123], want);
    }
    seconds.sort_by(f64::total_cmp);
    values.truncate(1);
    if ranks.rank() == 0 {
        let gigabytes = (millions * 4) as f64 / 1000.0;
        println!(
            "{} ranks of {}: {gigabytes} GB in {:.1} ms, {:.2} GB/s",
            ranks.world_size(),
            ranks.library(),
            seconds[2] * 1e3,
            gigabytes / seconds[2]
        );
    }
    ranks.finish()
}
