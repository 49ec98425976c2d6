//! The memory limit of this process's control groups on Linux: of a container, a Slurm job, or a service.
//!
//! Source: the kernel's documentation of Control Group v2 (memory.max, memory.current, memory.stat) and of the memory
//! controller of v1.

use std::fs;
use std::path::Path;

/// The file names of one version.
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// The lines of memory.stat that count file pages, which the kernel can evict.
    files: [&'static str; 2],
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    files: ["total_inactive_file", "total_active_file"],
};
const V2: Names =
    Names { limit: "memory.max", usage: "memory.current", files: ["inactive_file", "active_file"] };

/// Bytes that are free in the groups of this process; none if they have no limit.
pub(super) fn free_memory() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    free_memory_in(Path::new("/sys/fs/cgroup"), &groups)
}

/// The same, given the mount point of the groups and the content of /proc/self/cgroup.
fn free_memory_in(root: &Path, groups: &str) -> Option<u64> {
    let free = groups.lines().filter_map(|line| {
        // Hierarchy, controllers, path.
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>().try_into().ok()?;
        let (root, names) = match controllers {
            "" => (root.to_path_buf(), V2),
            _ if controllers.split(',').any(|controller| controller == "memory") => (root.join("memory"), V1),
            _ => return None,
        };
        // The limits of all parent groups apply, too.
        let group = root.join(path.trim_start_matches('/'));
        let groups = group.ancestors().take_while(|group| group.starts_with(&root));
        groups.filter_map(|group| free_in_group(group, &names)).min()
    });
    free.min()
}

fn free_in_group(group: &Path, names: &Names) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    // Without a limit, the file holds `max`, or in v1 a number larger than any memory.
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(names.limit)?, number(names.usage)?);
    let stat = read("memory.stat").unwrap_or_default();
    let files = stat.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        names.files.contains(&name).then(|| bytes.parse::<u64>().ok()).flatten()
    });
    Some(limit.saturating_sub(usage.saturating_sub(files.sum())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates the group `path`.
    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        let group = root.join(path);
        fs::create_dir_all(&group).unwrap();
        files.iter().for_each(|(name, content)| fs::write(group.join(name), content).unwrap());
    }

    #[test]
    fn the_tightest_limit_applies_and_file_pages_count_as_free() {
        let root = tempfile::tempdir().unwrap();
        let free = |groups: &str| free_memory_in(root.path(), groups);
        assert_eq!(free("0::/\n"), None, "no limit");
        let stat = "anon 5\ninactive_file 30\nactive_file 10\nshmem 7\n";
        let job = [("memory.max", "100\n"), ("memory.current", "90\n"), ("memory.stat", stat)];
        group(root.path(), "slurm/job_1", &job);
        assert_eq!(free("0::/slurm/job_1\n"), Some(50));
        group(root.path(), "slurm", &[("memory.max", "max\n"), ("memory.current", "500\n")]);
        assert_eq!(free("0::/slurm/job_1\n"), Some(50));
        group(root.path(), "slurm", &[("memory.max", "520\n")]);
        assert_eq!(free("0::/slurm/job_1\n"), Some(20));
        assert_eq!(free("0::/slurm/job_1/step\n"), Some(20), "a group without a limit");
    }

    #[test]
    fn v1_has_a_separate_tree() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("memory.limit_in_bytes", "100\n"),
            ("memory.usage_in_bytes", "80\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 20\n"),
        ];
        group(root.path(), "memory/docker/1", &files);
        let groups = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/docker/1\n";
        assert_eq!(free_memory_in(root.path(), groups), Some(40));
    }
}
