//! Which vector instructions this processor has, decided once at run time.
//!
//! Every kernel is plain Rust over slices. [`Isa::run`] compiles the closure it is given once for each
//! instruction set and calls the widest one, so that the compiler's own vectoriser does the work and one
//! binary serves every machine.

use std::sync::atomic::{AtomicU8, Ordering};

/// A set of vector instructions that this processor was found to have: only [`Isa::detected`] and
/// [`Isa::available`] make one, so holding it is the proof that running its code is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// The index into [`Isa::available`] of the set in use, or [`WIDEST`].
static FORCED: AtomicU8 = AtomicU8::new(WIDEST);
const WIDEST: u8 = u8::MAX;

impl Isa {
    /// The sets that this processor has, narrowest first; never empty.
    pub fn available() -> Vec<Isa> {
        let mut sets = vec![Isa(Set::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(Isa(Set::Avx2));
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("fma")
            {
                sets.push(Isa(Set::Avx512));
                if is_x86_feature_detected!("avx512bf16") {
                    sets.push(Isa(Set::Avx512Bf16));
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            sets.push(Isa(Set::Neon));
        }
        sets
    }

    /// The set that kernels use: the widest available, or the one that [`Isa::force`] chose.
    #[inline]
    pub fn detected() -> Isa {
        static WIDEST_SET: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        match FORCED.load(Ordering::Relaxed) {
            WIDEST => *WIDEST_SET.get_or_init(|| *Isa::available().last().expect("portable is always there")),
            index => Isa::available()[usize::from(index)],
        }
    }

    /// Makes every kernel of this process use `isa` from now on, or the widest set again for `None`.
    /// For tests and benchmarks, which compare the sets with each other.
    pub fn force(isa: Option<Isa>) {
        let index = isa.map_or(WIDEST, |isa| {
            let position = Isa::available().iter().position(|&other| other == isa);
            u8::try_from(position.expect("an Isa exists only if available")).expect("few sets")
        });
        FORCED.store(index, Ordering::Relaxed);
    }

    /// A short name: `portable`, `avx2`, `avx512`, `avx512-bf16` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 => "avx512-bf16",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
        }
    }

    /// Whether products of bfloat16 are faster than those of f32.
    pub fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.has_avx512_bf16();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether products multiply and add in one rounding.
    pub(crate) fn fuses(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.has_avx2();
        #[cfg(not(target_arch = "x86_64"))]
        cfg!(target_arch = "aarch64")
    }

    /// Whether AVX2 and FMA may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx2(self) -> bool {
        matches!(self.0, Set::Avx2 | Set::Avx512 | Set::Avx512Bf16)
    }

    /// Whether AVX-512 may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512(self) -> bool {
        matches!(self.0, Set::Avx512 | Set::Avx512Bf16)
    }

    /// Whether the dot product of bfloat16 pairs may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512_bf16(self) -> bool {
        self.0 == Set::Avx512Bf16
    }

    /// Runs `body` compiled for this set. For that the closure, and every function it calls in its loops,
    /// must be `#[inline(always)]`: `isa.run(#[inline(always)] || ...)`.
    #[inline(always)]
    pub fn run<R>(self, body: impl FnOnce() -> R) -> R {
        match self.0 {
            Set::Portable => body(),
            // SAFETY: this value exists, so detection found every feature that the function enables.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { run_avx2(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { run_avx512(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 => unsafe { run_avx512_bf16(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Set::Neon => unsafe { run_neon(body) },
        }
    }
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// # Safety
/// The processor must have AVX-512 F, BW, DQ and VL, and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_avx512<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// # Safety
/// The processor must have AVX-512 F, BW, DQ, VL and BF16, and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn run_avx512_bf16<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// # Safety
/// The processor must have NEON.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn run_neon<R>(body: impl FnOnce() -> R) -> R {
    body()
}
