//! A proposal which CPU does what, for `drayage doctor --cores`: the driver domain, its interrupts, the workers, the guests.
//!
//! It looks at the host and changes nothing. The rules are plain arithmetic on what was found; what they rest on was
//! measured by `cargo boot bench --suite cores`.

use std::collections::BTreeMap;
use std::process::Command;

use serde::Serialize;

use crate::control::nodes;
use crate::store::client::Client;
use crate::store::{Store, Transaction, children, read_text};

/// Virtual CPUs of guests that one worker serves.
const VCPUS_OF_A_WORKER: usize = 4;

/// A CPU of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Xen's number.
    pub number: u32,
    /// Its core; threads of a core share it.
    pub core: u32,
    /// Its socket.
    pub socket: u32,
    /// Its memory node.
    pub node: u32,
}

/// A guest's virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Guest {
    /// Name.
    pub name: String,
    /// How many.
    pub vcpus: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    /// CPUs of the machine, or of this domain where Xen does not tell.
    pub cpus: Vec<Cpu>,
    /// Virtual CPUs that this domain has.
    pub own_vcpus: usize,
    /// This domain's name.
    pub own_name: String,
    /// The others.
    pub guests: Vec<Guest>,
}

/// What a CPU is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Use {
    /// The CPU.
    pub cpu: Cpu,
    /// What runs there.
    pub runs: Vec<String>,
    /// Why.
    pub why: &'static str,
}

/// A proposal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// What it rests on.
    pub host: Host,
    /// What each CPU does.
    pub uses: Vec<Use>,
    /// Worker threads of the daemon.
    pub workers: usize,
    /// Virtual CPUs that this domain should have.
    pub own_vcpus: usize,
    /// How to have it so: commands, and lines of configuration.
    pub steps: Vec<String>,
    /// What to know of it.
    pub notes: Vec<String>,
}

/// Looks at the host and proposes.
pub fn examine() -> Proposal {
    let (host, notes) = look();
    let mut proposal = propose(host);
    proposal.notes.extend(notes);
    proposal
}

/// Finds out what there is, and what could not be found out.
fn look() -> (Host, Vec<String>) {
    let mut notes = Vec::new();
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let own_vcpus = count_of_list(online.trim()).max(1);
    let xl = Command::new("xl").args(["info", "-n"]).output().ok().filter(|output| output.status.success());
    let mut cpus = xl.map(|output| topology(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default();
    if cpus.is_empty() {
        notes.push(
            "`xl info -n` tells nothing here: the virtual CPUs of this domain are taken for those of the machine; \
             run this in dom0"
                .to_owned(),
        );
        cpus = (0..own_vcpus as u32).map(|number| Cpu { number, core: number, socket: 0, node: 0 }).collect();
    }
    let mut host = Host { cpus, own_vcpus, own_name: "Domain-0".into(), guests: Vec::new() };
    match Client::connect(|_| ()) {
        Ok(store) => match guests(&store) {
            Ok((own, guests)) => {
                host.own_name = own.unwrap_or(host.own_name);
                host.guests = guests;
            }
            Err(error) => notes.push(format!("the guests are not known: {error}")),
        },
        Err(error) => notes.push(format!("the guests are not known: {error}")),
    }
    (host, notes)
}

/// Reads this domain's name, and the others with their virtual CPUs.
fn guests(store: &Client) -> Result<(Option<String>, Vec<Guest>), crate::store::StoreError> {
    let own = store.own_domain()?;
    let mut name = None;
    let mut found = Vec::new();
    for domain in nodes::domains(store)? {
        if domain.id == own {
            name = Some(domain.name);
            continue;
        }
        let vcpus = vcpus(store, &format!("{}/cpu", nodes::home(domain.id)))?.max(1);
        found.push(Guest { name: domain.name, vcpus });
    }
    Ok((name, found))
}

/// Counts a domain's virtual CPUs that are there.
fn vcpus(store: &impl Store, path: &str) -> Result<usize, crate::store::StoreError> {
    let mut count = 0;
    for number in children(store, path)? {
        let state = read_text(store, Transaction::NONE, &format!("{path}/{number}/availability"))?;
        count += usize::from(state.as_deref() == Some("online"));
    }
    Ok(count)
}

/// Counts what a list of the kernel's names, as "0-3,8".
fn count_of_list(text: &str) -> usize {
    text.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(last.trim().parse::<usize>().ok()?.checked_sub(first.trim().parse().ok()?)? + 1)
        })
        .sum()
}

/// Reads the CPUs out of what `xl info -n` prints.
fn topology(text: &str) -> Vec<Cpu> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("cpu_topology"));
    lines.next();
    lines.next(); // The header: "cpu:    core    socket     node".
    lines
        .map_while(|line| {
            let (number, rest) = line.split_once(':')?;
            let mut fields = rest.split_whitespace().map(|field| field.parse().ok());
            Some(Cpu {
                number: number.trim().parse().ok()?,
                core: fields.next()??,
                socket: fields.next()??,
                node: fields.next()??,
            })
        })
        .collect()
}

/// Proposes who runs where. A guest apart from the driver domain is faster than one beside it, so cores are for one or
/// the other as long as there are two; threads of one core count as one, because they share it. The driver domain stays
/// on the first CPU's memory node where there is room.
pub fn propose(host: Host) -> Proposal {
    let mut cores: BTreeMap<(u32, u32), Vec<Cpu>> = BTreeMap::new();
    for cpu in &host.cpus {
        cores.entry((cpu.socket, cpu.core)).or_default().push(*cpu);
    }
    let mut cores: Vec<Vec<Cpu>> = cores.into_values().collect();
    let first = host.cpus.first().map_or((0, 0), |cpu| (cpu.node, cpu.number));
    cores.sort_by_key(|core| (core[0].node != first.0, core[0].number));
    let guest_vcpus: usize = host.guests.iter().map(|guest| guest.vcpus).sum();
    let workers = guest_vcpus.div_ceil(VCPUS_OF_A_WORKER).clamp(1, (cores.len() / 4).max(1));
    // Interrupts have a core of their own only where that leaves the guests at least two.
    let apart = cores.len() >= workers + 3;
    let own_cores = if apart { workers + 1 } else { 1 };
    let mut proposal = Proposal {
        workers,
        own_vcpus: own_cores,
        uses: Vec::new(),
        steps: Vec::new(),
        notes: Vec::new(),
        host,
    };
    proposal.place_own(&cores, own_cores, apart);
    proposal.place_guests(&cores, own_cores);
    proposal.uses.sort_by_key(|one| one.cpu.number);
    proposal
}

impl Proposal {
    /// Places the driver domain's virtual CPUs, its interrupts, and the workers.
    fn place_own(&mut self, cores: &[Vec<Cpu>], own_cores: usize, apart: bool) {
        let own = self.host.own_name.clone();
        for (vcpu, core) in cores.iter().take(own_cores).enumerate() {
            let (runs, why) = match (vcpu, apart) {
                (0, true) => (
                    format!("{own} vCPU 0: interrupts, xenstored, everything else"),
                    "keeps workers undisturbed",
                ),
                (0, false) => (format!("{own} vCPU 0: interrupts and worker 0"), "no core to spare for each"),
                (worker, _) => (
                    format!("{own} vCPU {worker}: worker {}", worker - 1),
                    "a packet's work stays on one core",
                ),
            };
            self.uses.push(Use { cpu: core[0], runs: vec![runs], why });
            for thread in &core[1..] {
                let why = "its sibling would take turns with it on one core";
                self.uses.push(Use { cpu: *thread, runs: Vec::new(), why });
            }
            self.steps.push(format!("xl vcpu-pin {own} {vcpu} {}", core[0].number));
        }
        if self.host.own_vcpus != own_cores {
            self.steps.insert(0, format!("Xen's command line: dom0_max_vcpus={own_cores} dom0_vcpus_pin"));
            self.notes.push(format!(
                "{own} has {} virtual CPUs, and needs {own_cores}; where it cannot be restarted, \
                 `xl vcpu-set {own} {own_cores}` takes away what is too much",
                self.host.own_vcpus
            ));
        }
        let first = usize::from(apart);
        let pins: Vec<String> = (first..first + self.workers).map(|vcpu| vcpu.to_string()).collect();
        self.steps.push(format!(
            "drayage's configuration: [worker] threads = {}, pin = [{}]",
            self.workers,
            pins.join(", ")
        ));
    }

    /// Spreads the guests over what is left, or over all where nothing is.
    fn place_guests(&mut self, cores: &[Vec<Cpu>], own_cores: usize) {
        let left: Vec<Cpu> = cores.iter().skip(own_cores).flatten().copied().collect();
        let shared = left.is_empty();
        let places: Vec<Cpu> = if shared { cores.iter().flatten().copied().collect() } else { left };
        if places.is_empty() {
            return;
        }
        let mut runs: Vec<Vec<String>> = vec![Vec::new(); places.len()];
        let mut next = 0;
        for guest in &self.host.guests {
            for vcpu in 0..guest.vcpus {
                runs[next].push(format!("{} vCPU {vcpu}", guest.name));
                self.steps.push(format!("xl vcpu-pin {} {vcpu} {}", guest.name, places[next].number));
                next = (next + 1) % places.len();
            }
        }
        for (cpu, runs) in places.into_iter().zip(runs) {
            if let Some(used) = self.uses.iter_mut().find(|one| one.cpu == cpu) {
                used.runs.extend(runs);
                continue;
            }
            let why = match runs.len() {
                0 => "free, for guests to come",
                1 => "a guest apart from what serves it",
                _ => "more virtual CPUs of guests than CPUs: these share one",
            };
            self.uses.push(Use { cpu, runs, why });
        }
        if shared {
            self.notes.push(
                "one core for all: guests take turns with what serves them, which containers make bearable and \
                 nothing makes good"
                    .to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cores: u32, threads: u32, guests: &[usize]) -> Host {
        let cpus = (0..cores * threads)
            .map(|number| Cpu { number, core: number / threads, socket: 0, node: 0 })
            .collect();
        let guests = guests
            .iter()
            .enumerate()
            .map(|(at, vcpus)| Guest { name: format!("g{at}"), vcpus: *vcpus })
            .collect();
        Host { cpus, own_vcpus: 1, own_name: "Domain-0".into(), guests }
    }

    fn runs(proposal: &Proposal, cpu: u32) -> String {
        proposal.uses.iter().find(|one| one.cpu.number == cpu).unwrap().runs.join("; ")
    }

    #[test]
    fn two_cores_are_one_for_each_side() {
        let proposal = propose(host(2, 1, &[1, 1]));
        assert_eq!((proposal.workers, proposal.own_vcpus), (1, 1));
        assert_eq!(runs(&proposal, 0), "Domain-0 vCPU 0: interrupts and worker 0");
        assert_eq!(runs(&proposal, 1), "g0 vCPU 0; g1 vCPU 0");
        assert!(proposal.uses[1].why.contains("share"), "{proposal:?}");
        assert_eq!(
            proposal.steps,
            [
                "xl vcpu-pin Domain-0 0 0",
                "drayage's configuration: [worker] threads = 1, pin = [0]",
                "xl vcpu-pin g0 0 1",
                "xl vcpu-pin g1 0 1"
            ]
        );
    }

    #[test]
    fn one_core_is_shared_and_said_to_be() {
        let proposal = propose(host(1, 1, &[1]));
        assert_eq!(runs(&proposal, 0), "Domain-0 vCPU 0: interrupts and worker 0; g0 vCPU 0");
        assert!(proposal.notes.iter().any(|note| note.contains("one core for all")), "{proposal:?}");
    }

    #[test]
    fn interrupts_and_workers_part_where_there_is_room() {
        let proposal = propose(host(8, 1, &[2, 2, 1]));
        assert_eq!((proposal.workers, proposal.own_vcpus), (2, 3));
        assert!(runs(&proposal, 0).contains("interrupts"));
        assert_eq!(runs(&proposal, 2), "Domain-0 vCPU 2: worker 1");
        assert_eq!(runs(&proposal, 3), "g0 vCPU 0");
        assert!(proposal.steps[0].contains("dom0_max_vcpus=3"), "{proposal:?}");
        assert!(
            proposal.steps.contains(&"drayage's configuration: [worker] threads = 2, pin = [1, 2]".into())
        );
    }

    #[test]
    fn threads_of_a_core_are_not_two_cores() {
        let proposal = propose(host(2, 2, &[1, 1]));
        assert_eq!(runs(&proposal, 1), "", "the sibling of the driver domain's thread");
        assert_eq!(runs(&proposal, 2), "g0 vCPU 0");
        assert_eq!(runs(&proposal, 3), "g1 vCPU 0");
    }

    #[test]
    fn the_driver_domain_stays_on_the_first_node() {
        let mut host = host(8, 1, &[4, 4]);
        host.cpus.iter_mut().for_each(|cpu| cpu.node = cpu.number % 2);
        let proposal = propose(host);
        let own: Vec<u32> = proposal
            .uses
            .iter()
            .filter(|one| one.runs.iter().any(|run| run.starts_with("Domain-0")))
            .map(|one| one.cpu.node)
            .collect();
        assert_eq!(own, [0, 0, 0]);
    }

    #[test]
    fn what_xl_and_the_kernel_print() {
        let text = "host                   : x\nnr_cpus                : 2\ncpu_topology           :\n\
                    cpu:    core    socket     node\n  0:       0        0        0\n  1:       1        0        0\n\
                    device topology        :\n";
        let cpus = topology(text);
        assert_eq!(cpus.len(), 2);
        assert_eq!(cpus[1], Cpu { number: 1, core: 1, socket: 0, node: 0 });
        assert_eq!(topology("nothing"), []);
        for (text, count) in [("0", 1), ("0-3", 4), ("0-1,4-5", 4), ("", 0), ("x", 0), ("3-1", 0)] {
            assert_eq!(count_of_list(text), count, "{text:?}");
        }
    }
}
