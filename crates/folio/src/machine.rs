//! The machine that a run trains on.

use std::path::Path;

use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

mod cgroup;

/// The description of a machine in records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor's name; empty if unknown.
    pub cpu: String,
    /// The number of cores that this process may use.
    pub cores: usize,
    /// Bytes of memory, if known.
    pub memory: Option<u64>,
    /// The operating system.
    pub system: String,
}

impl Machine {
    /// The machine that this process runs on.
    pub fn here() -> Self {
        let system =
            read_system(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(memory()));
        let cpu = system.as_ref().and_then(|system| system.cpus().first());
        Self {
            cpu: cpu.map_or_else(String::new, |cpu| cpu.brand().trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: system.as_ref().map(System::total_memory),
            system: System::long_os_version().unwrap_or_default(),
        }
    }
}

/// The processors of this machine, whether or not this process may use them; 1 if unknown.
pub fn processors() -> usize {
    let system = read_system(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    system.map_or(1, |system| system.cpus().len())
}

/// Bytes of memory that this process can allocate without swapping, if known: the free memory of the machine, within the
/// limits of the container and of the process (`ulimit -v`).
pub fn available_memory() -> Option<u64> {
    let system = read_system(RefreshKind::nothing().with_memory(memory()))?;
    // Without /proc, as in a bare chroot, the machine's memory is unknown and reads as 0.
    let free = (system.total_memory() > 0).then(|| system.available_memory());
    [free, cgroup::free_memory(), address_space()].into_iter().flatten().min()
}

/// The most bytes of memory that this process has had resident; known on Linux only.
pub fn peak_memory() -> Option<u64> {
    // proc_pid_status(5).
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Bytes of address space that are left, if there is a limit.
fn address_space() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit};
        let limit = getrlimit(Resource::As).current?;
        // Only Linux reports the mapped memory, in pages (proc_pid_statm(5)).
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split(' ').next().and_then(|pages| pages.parse().ok()).unwrap_or(0);
        Some(limit.saturating_sub(pages * rustix::param::page_size() as u64))
    }
    #[cfg(not(unix))]
    None
}

fn memory() -> MemoryRefreshKind {
    MemoryRefreshKind::nothing().with_ram()
}

fn read_system(kinds: RefreshKind) -> Option<System> {
    System::new_with_specifics(kinds).ok()
}

/// Bytes that this user can still write to the disk of `path`, which may not exist yet; none if unknown.
pub fn available_disk(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(existing).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}
