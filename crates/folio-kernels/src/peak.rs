//! What the machine itself can do: arithmetic in registers and copying in memory, to measure the kernels by.

use std::sync::OnceLock;
use std::time::Instant;

#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{amx, avx512};
use crate::element::{Bf16, Element};
use crate::isa::Isa;

/// The throughput of bfloat16 multiply-adds in registers over that of f32: about 15 with AMX, 2 on Zen 5, 0.5 on a Xeon without
/// AMX, whose `VDPBF16PS` is slow, 1 where bfloat16 has no arithmetic of its own. Measured at the first call, in a few
/// milliseconds, for the instruction set in use then.
pub fn bf16_speedup() -> f64 {
    static SPEEDUP: OnceLock<f64> = OnceLock::new();
    fn speed<E: Element>(rounds: usize) -> f64 {
        let start = Instant::now();
        let (flop, sum) = multiply_add::<E>(rounds);
        std::hint::black_box(sum);
        flop / start.elapsed().as_secs_f64()
    }
    *SPEEDUP.get_or_init(|| {
        if !Isa::detected().multiplies_bf16() {
            return 1.0;
        }
        // In turn, so that a processor that is busy for a while is so for both, and the best of each.
        let (mut single, mut half) = (0.0f64, 0.0f64);
        for _ in 0..8 {
            single = single.max(speed::<f32>(10_000));
            half = half.max(speed::<Bf16>(1_000));
        }
        half / single
    })
}

/// Multiply-adds of one register of units into one of sums, `rounds` times over independent registers. Returns the
/// floating-point operations done, and a value that keeps the compiler from dropping them.
///
/// With `Bf16` this is the matmul of tiles or the dot product of pairs where the processor has it; elsewhere bfloat16
/// has no arithmetic of its own and the f32 one is measured.
pub fn multiply_add<E: Element>(rounds: usize) -> (f64, f32) {
    let isa = Isa::detected();
    #[cfg(target_arch = "x86_64")]
    {
        if isa.has_amx_bf16() && E::PAIR == 2 {
            // SAFETY: an `Isa` exists only if the process may use it.
            return unsafe { amx::peak(rounds) };
        }
        if isa.has_avx512_bf16() && E::PAIR == 2 {
            // SAFETY: the set has AVX512-BF16.
            return unsafe { avx512::peak_bf16(rounds) };
        }
        if isa.has_avx512() {
            // SAFETY: the set has AVX-512.
            return unsafe { avx512::peak_f32(rounds) };
        }
    }
    isa.run(
        #[inline(always)]
        || portable(rounds),
    )
}

/// Twelve chains of eight lanes, which fill two 256-bit units; in one rounding where that is one instruction.
#[inline(always)]
fn portable(rounds: usize) -> (f64, f32) {
    const CHAINS: usize = 12;
    const LANES: usize = 8;
    let (a, b) = (std::hint::black_box([1.0f32; LANES]), std::hint::black_box([1e-9f32; LANES]));
    let mut sums = [[0.0f32; LANES]; CHAINS];
    for _ in 0..rounds {
        for sums in &mut sums {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = a[lane].mul_add(b[lane], *sum);
            }
        }
    }
    let total = sums.iter().flatten().sum();
    ((rounds * CHAINS * LANES * 2) as f64, total)
}
