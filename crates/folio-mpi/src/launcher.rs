//! Whether a launcher started this process as one of several ranks.

use std::env;

/// What the launcher says about this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The launcher, for messages.
    pub launcher: &'static str,
    /// The ranks that it started.
    pub ranks: usize,
    /// The ranks on this machine, if the launcher says so.
    pub local_ranks: Option<usize>,
}

/// The variables of a launcher: its name, that of the number of ranks, that of the number of ranks on this machine.
type Variables = (&'static str, &'static str, &'static str);

/// The launchers, in the order in which they are looked for: an `mpirun` inside a Slurm job started the ranks itself.
const LAUNCHERS: [Variables; 5] = [
    ("mpirun of Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("mpirun of MPICH", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("mpirun of MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("prun of PRRTE", "PRTE_COMM_WORLD_SIZE", "PRTE_COMM_WORLD_LOCAL_SIZE"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_TASKS_PER_NODE"),
];

impl Launched {
    /// What the launcher of this process says; `None` if there is none, or if it started a single rank.
    pub fn find() -> Option<Self> {
        Self::among(|name| env::var(name).ok())
    }

    /// [`Launched::find`] with the given environment.
    fn among(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let (launcher, ranks, local_ranks) = LAUNCHERS.into_iter().find_map(|(launcher, ranks, local)| {
            let ranks: usize = variable(ranks)?.trim().parse().ok()?;
            Some((launcher, ranks, variable(local)))
        })?;
        // Slurm's list has an entry per machine, such as `4(x2),3`. Machines that differ have no common number.
        let local_ranks = local_ranks.and_then(|text| match text.split_once("(x") {
            Some((count, _)) if !text.contains(',') => count.parse().ok(),
            _ => text.trim().parse().ok(),
        });
        (ranks > 1).then_some(Self { launcher, ranks, local_ranks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(environment: &[(&str, &str)], want: Option<(&str, usize, Option<usize>)>) {
        let variable = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let got = Launched::among(variable);
        let got = got.map(|Launched { launcher, ranks, local_ranks }| (launcher, ranks, local_ranks));
        assert_eq!(got, want, "{environment:?}");
    }

    #[test]
    fn launchers_are_recognized_by_their_variables() {
        let open_mpi = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
        check(&open_mpi, Some(("mpirun of Open MPI", 4, Some(2))));
        check(&[("PMI_SIZE", "3"), ("MPI_LOCALNRANKS", "3")], Some(("mpirun of MPICH", 3, Some(3))));
        let slurm = |per_node| [("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_TASKS_PER_NODE", per_node)];
        check(&slurm("4(x2)"), Some(("srun", 8, Some(4))));
        check(&slurm("8"), Some(("srun", 8, Some(8))));
        check(&slurm("4(x1),2(x2)"), Some(("srun", 8, None)));
        // mpirun inside a Slurm job.
        let both = [slurm("8").as_slice(), open_mpi.as_slice()].concat();
        check(&both, Some(("mpirun of Open MPI", 4, Some(2))));
        // A single rank needs no MPI.
        check(&[], None);
        check(&[("OMPI_COMM_WORLD_SIZE", "1")], None);
        check(&[("PMI_SIZE", "many")], None);
    }
}
