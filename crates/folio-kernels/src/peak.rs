//! The peak arithmetic throughput of this machine, measured in registers, as a reference for the kernels.

use std::sync::OnceLock;
use std::time::Instant;

#[cfg(target_arch = "aarch64")]
use crate::arch::aarch64::neon;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{amx, avx512};
use crate::element::{Bf16, Element};
use crate::isa::Isa;

/// The ratio of bfloat16 to f32 multiply-add throughput in registers: about 15 with AMX; 2 on Zen 5; 0.5 on a Xeon
/// without AMX, whose `VDPBF16PS` is slow; 1 without bfloat16 arithmetic. The first call measures it for the current
/// instruction set, in a few milliseconds.
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
        // Alternate, so that other load on the processor affects both, and take the best of each.
        let (mut single, mut half) = (0.0f64, 0.0f64);
        for _ in 0..8 {
            single = single.max(speed::<f32>(10_000));
            half = half.max(speed::<Bf16>(1_000));
        }
        half / single
    })
}

/// Multiply-adds of registers, `rounds` times over independent registers of sums. Returns the number of floating-point
/// operations, and a value that keeps the compiler from removing them.
///
/// With `Bf16` this measures the tile matmul of AMX, the dot product of pairs, or ARM's small matmul. Without bfloat16 arithmetic, it
/// measures f32.
pub fn multiply_add<E: Element>(rounds: usize) -> (f64, f32) {
    let isa = Isa::detected();
    #[cfg(target_arch = "x86_64")]
    {
        if isa.has_amx_bf16() && E::PER_UNIT == 2 {
            // SAFETY: an `Isa` proves that the process may use AMX.
            return unsafe { amx::peak(rounds) };
        }
        if isa.has_avx512_bf16() && E::PER_UNIT == 2 {
            // SAFETY: the set has AVX512-BF16.
            return unsafe { avx512::peak_bf16(rounds) };
        }
        if isa.has_avx512() {
            // SAFETY: the set has AVX-512.
            return unsafe { avx512::peak_f32(rounds) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if isa.has_neon_bf16() && E::PER_UNIT == 2 {
        // SAFETY: the set has BF16.
        return unsafe { neon::peak_bf16(rounds) };
    }
    isa.run(
        #[inline(always)]
        || portable(rounds),
    )
}

/// Twelve chains of eight lanes, enough for two 256-bit units; fused if the target has an instruction for it.
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
