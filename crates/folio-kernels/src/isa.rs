//! Detects at run time which vector instructions this processor has.
//!
//! Most kernels are plain Rust over slices. [`Isa::run`] compiles its closure once per instruction set and calls the
//! selected version. The compiler vectorizes the code, and one binary serves every machine.

use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(target_arch = "aarch64")]
use crate::arch::aarch64::neon;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{amx, avx2, avx512};

/// A set of vector instructions that this processor has. Only [`Isa::detected`] and [`Isa::available`] create one, so a
/// value of this type proves that running code compiled for the set is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Set {
    /// What every processor of the architecture has.
    #[cfg(not(target_arch = "aarch64"))]
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    AmxBf16,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonBf16,
}

/// Why an instruction set cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The processor does not have it.
    Absent,
    /// The processor has it, but this process may not use it: the operating system or the seccomp filter of a container
    /// denies it, or folio does not know how to request it on this operating system.
    Refused,
}

impl Missing {
    fn of(name: &str) -> Self {
        #[cfg(target_arch = "x86_64")]
        if name == "amx-bf16" && amx::support() == amx::Support::Refused {
            return Self::Refused;
        }
        let _ = name;
        Self::Absent
    }
}

/// The index into [`Isa::available`] of the set in use, or [`WIDEST`].
static FORCED: AtomicU8 = AtomicU8::new(WIDEST);
const WIDEST: u8 = u8::MAX;

impl Isa {
    /// The instruction sets of this processor, narrowest first; never empty.
    pub fn available() -> Vec<Isa> {
        #[cfg(not(target_arch = "aarch64"))]
        let mut sets = vec![Isa(Set::Portable)];
        #[cfg(target_arch = "aarch64")]
        let mut sets = vec![Isa(Set::Neon)];
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
                    if amx::support() == amx::Support::Granted {
                        sets.push(Isa(Set::AmxBf16));
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("bf16") {
            sets.push(Isa(Set::NeonBf16));
        }
        sets
    }

    /// The instruction sets of this architecture that cannot be used, and why.
    pub fn missing() -> Vec<(&'static str, Missing)> {
        #[cfg(target_arch = "x86_64")]
        let known = ["avx2", "avx512", "avx512-bf16", "amx-bf16"];
        #[cfg(target_arch = "aarch64")]
        let known = ["neon-bf16"];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let known: [&str; 0] = [];
        let available = Self::available();
        let missing = known.into_iter().filter(|name| available.iter().all(|isa| isa.name() != *name));
        missing.map(|name| (name, Missing::of(name))).collect()
    }

    /// The instruction set that kernels use: the widest available, or the one selected with [`Isa::force`].
    #[inline]
    pub fn detected() -> Isa {
        static WIDEST_SET: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        match FORCED.load(Ordering::Relaxed) {
            WIDEST => *WIDEST_SET.get_or_init(|| *Isa::available().last().expect("there is always one")),
            index => Isa::available()[usize::from(index)],
        }
    }

    /// Selects the instruction set for every kernel of this process, or the widest one again with `None`. For tests and
    /// benchmarks, which compare the sets.
    pub fn force(isa: Option<Isa>) {
        let index = isa.map_or(WIDEST, |isa| {
            let position = Isa::available().iter().position(|&other| other == isa);
            u8::try_from(position.expect("an Isa is always available")).expect("fewer than 256 sets")
        });
        FORCED.store(index, Ordering::Relaxed);
    }

    /// The short name: `portable`, `avx2`, `avx512`, `avx512-bf16`, `amx-bf16`, `neon` or `neon-bf16`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(not(target_arch = "aarch64"))]
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Set::AmxBf16 => "amx-bf16",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Set::NeonBf16 => "neon-bf16",
        }
    }

    /// Whether the processor has bfloat16 arithmetic. It may be slower than f32: see [`crate::peak::bf16_speedup`].
    pub fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.has_avx512_bf16();
        #[cfg(target_arch = "aarch64")]
        return self.has_neon_bf16();
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        false
    }

    /// Whether BF16's matmuls may be used.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn has_neon_bf16(self) -> bool {
        self.0 == Set::NeonBf16
    }

    /// Whether AVX2 and FMA may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx2(self) -> bool {
        matches!(self.0, Set::Avx2 | Set::Avx512 | Set::Avx512Bf16 | Set::AmxBf16)
    }

    /// Whether AVX-512 may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512(self) -> bool {
        matches!(self.0, Set::Avx512 | Set::Avx512Bf16 | Set::AmxBf16)
    }

    /// Whether the dot product of bfloat16 pairs may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx512_bf16(self) -> bool {
        matches!(self.0, Set::Avx512Bf16 | Set::AmxBf16)
    }

    /// Whether the tile registers of AMX-BF16 may be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_amx_bf16(self) -> bool {
        self.0 == Set::AmxBf16
    }

    /// Runs `body` compiled for this instruction set. The closure, and every function that it calls in its loops, must
    /// be `#[inline(always)]`: `isa.run(#[inline(always)] || ...)`.
    #[inline(always)]
    pub fn run<R>(self, body: impl FnOnce() -> R) -> R {
        match self.0 {
            #[cfg(not(target_arch = "aarch64"))]
            Set::Portable => body(),
            // SAFETY: this value proves that the processor has every feature that the function enables.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::run(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { avx512::run(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16 | Set::AmxBf16 => unsafe { avx512::run_bf16(body) },
            #[cfg(target_arch = "aarch64")]
            Set::Neon => body(),
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Set::NeonBf16 => unsafe { neon::run_bf16(body) },
        }
    }
}
