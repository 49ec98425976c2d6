//! AMX: its rounding, its registers with several threads and with signals, and denied permission.

use std::arch::asm;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use folio_kernels::buffer::Buffer;
use folio_kernels::element::{Bf16, Element};
use folio_kernels::isa::{Isa, Missing};
use folio_kernels::matmul::{Lhs, Store, matmul, matmul_into};
use folio_kernels::panels::{PanelDims, Panels};
use folio_kernels::reference::amx_dot;

use crate::support::{Random, assert_same_bits, in_panels, transposed};

/// AMX, if this machine has it.
fn amx() -> Option<Isa> {
    let found = Isa::available().into_iter().find(|isa| isa.name() == "amx-bf16");
    if found.is_none() {
        eprintln!("skipped: amx-bf16 is not available here");
    }
    found
}

/// Two operands and the twin's matmul of them.
struct Case {
    rows: usize,
    depth: usize,
    cols: usize,
    lhs: Vec<Bf16>,
    rhs: Vec<Bf16>,
    want: Vec<f32>,
}

impl Case {
    fn new(rows: usize, depth: usize, cols: usize, value: impl FnMut(f32) -> f32 + Copy) -> Self {
        let mut random = Random(7);
        let mut values = |len: usize| -> Vec<Bf16> {
            random.as_f32(len, 1.0).into_iter().map(value).map(Bf16::from_f32).collect()
        };
        let (lhs, rhs) = (values(rows * depth), values(depth * cols));
        let columns = transposed(&rhs, depth, cols);
        let want = (lhs.chunks_exact(depth))
            .flat_map(|row| columns.chunks_exact(depth).map(|column| amx_dot(0.0, row, column)))
            .collect();
        Self { rows, depth, cols, lhs, rhs, want }
    }

    fn run(&self, isa: Isa) -> Vec<f32> {
        let mut lhs = Buffer::zeroed(self.lhs.len());
        lhs.copy_from_slice(&self.lhs);
        let dims = PanelDims { depth: self.depth, cols: self.cols };
        let panels = in_panels(dims, &self.rhs);
        let mut out = vec![0.0; self.rows * self.cols];
        let lhs = Lhs::Rows { data: &lhs, stride: self.depth };
        isa.run(
            #[inline(always)]
            || {
                let rhs = Panels::new(dims, &panels);
                matmul_into(isa, 0..self.rows, lhs, rhs, &mut out, self.cols, Store::Overwrite);
            },
        );
        out
    }

    fn check(&self, isa: Isa) {
        let Self { rows, depth, cols, .. } = self;
        assert_same_bits(&format!("{rows} x {depth} x {cols}"), &self.run(isa), &self.want);
    }
}

#[test]
fn sums_have_the_same_bits_as_the_twin() {
    let Some(isa) = amx() else { return };
    for (rows, depth, cols) in [(1, 2, 1), (5, 32, 64), (33, 34, 70), (32, 384, 64), (48, 160, 96)] {
        Case::new(rows, depth, cols, |x| x).check(isa);
        // Sizes so different that every addition rounds.
        Case::new(rows, depth, cols, |x| x * (x * 40.0).exp2()).check(isa);
        // Subnormal products, and subnormal operands.
        Case::new(rows, depth, cols, |x| x * 1e-19).check(isa);
        Case::new(rows, depth, cols, |x| if x < 0.0 { x } else { x * 1e-38 }).check(isa);
    }
}

/// Matmuls on `threads` threads that start simultaneously.
fn on_threads(isa: Isa, case: &Case, threads: usize) {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..20 {
                    case.check(isa);
                }
            });
        }
    });
}

#[test]
fn every_thread_can_use_the_registers() {
    let Some(isa) = amx() else { return };
    let case = Case::new(64, 384, 64, |x| x);
    on_threads(isa, &case, 64);
    // A pool, twice, so that each thread has released its registers in between.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("three threads");
    for _ in 0..2 {
        pool.broadcast(|_| case.check(isa));
    }
    case.check(isa);
}

/// A configuration of another library: one tile of 3 rows of 8 bytes.
fn foreign() -> [u8; 64] {
    let mut bytes = [0; 64];
    (bytes[0], bytes[16], bytes[48]) = (1, 8, 3);
    bytes
}

fn configuration() -> [u8; 64] {
    let mut bytes = [0; 64];
    // SAFETY: the process may use AMX; 64 bytes are written.
    unsafe { asm!("sttilecfg [{}]", in(reg) bytes.as_mut_ptr()) };
    bytes
}

fn configure(bytes: &[u8; 64]) {
    // SAFETY: the process may use AMX; the bytes are zero or a valid configuration.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) bytes.as_ptr(), out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _)
    };
}

#[test]
fn the_configuration_of_the_calling_thread_is_restored() {
    let Some(isa) = amx() else { return };
    let case = Case::new(40, 96, 64, |x| x);
    case.check(isa);
    assert_eq!(configuration(), [0; 64], "released registers stay released");
    configure(&foreign());
    case.check(isa);
    let after = configuration();
    // A closure that panics during a matmul.
    let panicking = std::panic::catch_unwind(|| {
        let dims = PanelDims { depth: 32, cols: 64 };
        let panels = vec![Bf16::default(); dims.len::<Bf16>()];
        let lhs = Lhs::Rows { data: &[Bf16::default(); 32], stride: 32 };
        isa.run(
            #[inline(always)]
            || matmul(isa, 0..1, lhs, Panels::new(dims, &panels), |_, _| panic!("on purpose")),
        );
    });
    let after_panic = configuration();
    configure(&[0; 64]);
    assert!(panicking.is_err());
    assert_eq!((after, after_panic), (foreign(), foreign()));
}

#[test]
fn a_signal_handler_can_use_the_registers() {
    static HANDLED: AtomicUsize = AtomicUsize::new(0);
    /// Leaves a different configuration and different contents in the registers.
    extern "C" fn handler(_: libc::c_int) {
        configure(&foreign());
        // SAFETY: the configuration includes this tile.
        unsafe { asm!("tilezero tmm0", out("tmm0") _) };
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    let Some(isa) = amx() else { return };
    let case = Case::new(64, 384, 64, |x| x);
    let handler: extern "C" fn(libc::c_int) = handler;
    // SAFETY: the handler only accesses registers, which the kernel of the operating system restores, and an atomic
    // number.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        /// Stops the sending thread even if a check fails; the scope waits for it.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        // SAFETY: the identifier is valid during the lifetime of the thread.
        let this = unsafe { libc::pthread_self() };
        let done = &done;
        let _done = Done(done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                // SAFETY: the target thread is alive: it waits for this one at the end of the scope.
                unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
                std::thread::yield_now();
            }
        });
        while HANDLED.load(Ordering::Relaxed) < 500 {
            case.check(isa);
        }
    });
}

/// Makes the operating system deny `arch_prctl(ARCH_REQ_XCOMP_PERM)` to this process, like the seccomp filter of a
/// container.
fn deny_permission() {
    const ARCH_REQ_XCOMP_PERM: u32 = 0x1023;
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    // `struct seccomp_data`: the system call number at offset 0, its first argument at 16.
    let mut program = [
        statement(load, 0, 0, 0),
        statement(equal, 0, 3, libc::SYS_arch_prctl as u32),
        statement(load, 0, 0, 16),
        statement(equal, 0, 1, ARCH_REQ_XCOMP_PERM),
        statement(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter is valid while it is read. It allows all other calls, and applies to this thread and its
    // children.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

#[test]
fn without_permission_the_next_set_is_used() {
    const CHILD: &str = "FOLIO_TEST_AMX_DENIED";
    if std::env::var_os(CHILD).is_some() {
        deny_permission();
        let sets: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        println!("{sets:?} {:?}", Isa::missing());
        assert_eq!(Isa::detected().name(), "avx512-bf16");
        assert!(Isa::missing().contains(&("amx-bf16", Missing::Refused)));
        let case = Case::new(33, 64, 64, |x| x);
        for (got, want) in case.run(Isa::detected()).iter().zip(&case.want) {
            // 64 products of numbers up to 1, each added once in either order.
            assert!((got - want).abs() <= 2.0 * 64.0 * 64.0 * f32::EPSILON / 2.0, "{got} and {want}");
        }
        return;
    }
    if amx().is_none() {
        return;
    }
    let name = "amx::without_permission_the_next_set_is_used";
    let test = Command::new(std::env::current_exe().expect("a path"))
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("the test runs itself");
    let stdout = String::from_utf8_lossy(&test.stdout);
    assert!(
        test.status.success() && stdout.contains("1 passed"),
        "{stdout}{}",
        String::from_utf8_lossy(&test.stderr)
    );
}
