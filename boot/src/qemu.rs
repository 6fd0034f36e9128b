//! Starts QEMU and sees to its end: the command line from small functions, a deadline, a child that
//! dies with us. Knows nothing of Xen's insides and of what runs in the machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::progress::{Verbosity, command_line, last_lines};
use crate::setup::Emulator;

/// How the machine's clocks advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// With real time, on two host cores.
    Wall,
    /// With real time, and dom0 has a virtual CPU on each of the two.
    WallOfTwoForDom0,
    /// One nanosecond for every instruction that is executed, over all CPUs together.
    Instructions,
    /// The same on a machine with one CPU: there a domain is billed for its own work alone.
    InstructionsOfOneCpu,
}

impl Clock {
    /// Returns the number of the machine's last CPU, on which guests run; dom0 is on the first.
    pub fn last_cpu(self) -> u8 {
        match self {
            Clock::Wall | Clock::WallOfTwoForDom0 | Clock::Instructions => 1,
            Clock::InstructionsOfOneCpu => 0,
        }
    }
}

/// CPU features that are left out, each for a reason:
/// * smap: QEMU 7.2 faults on `iret` from ring 3 to ring 3, which is what a PV kernel does;
/// * rdtscp: QEMU's SVM gives Xen no instruction length for it, a Linux PVH guest loops for ever;
/// * avx and what needs it: disabled inside a PVH guest, where libc dies at its first AVX instruction;
/// * xsave: QEMU 7.2's XSAVE and XRSTOR do not look at CR0.TS, with which Xen puts off the restoring of vector
///   registers until a PV guest uses them (ARCHITECTURE.md, "What the emulation does"); FXSAVE and FXRSTOR do look;
/// * erms, fsrm: Linux would copy byte by byte, and every byte counts as an instruction.
const CPU: &str = "max,-smap,-rdtscp,-avx,-avx2,-fma,-f16c,-xsave,-erms,-fsrm";

/// A machine that runs Xen and, as dom0, Linux.
#[derive(Debug)]
pub struct XenMachine<'a> {
    /// Uncompressed hypervisor.
    pub xen: &'a Path,
    /// dom0's kernel.
    pub kernel: &'a Path,
    /// dom0's first file system.
    pub initramfs: &'a Path,
    /// How its clocks advance.
    pub clock: Clock,
    /// File that takes what the hypervisor and dom0 print.
    pub console: &'a Path,
}

/// Returns the command for a machine that runs Xen; its second serial line is our own standard input
/// and output.
pub fn xen_command(emulator: &Emulator, machine: &XenMachine) -> Command {
    let mut command = base(emulator);
    let vcpus = if machine.clock == Clock::WallOfTwoForDom0 { 2 } else { 1 };
    let xen_line = format!(
        "com1=115200,8n1 console=com1 loglvl=warning guest_loglvl=warning dom0_mem=1024M,max:1024M \
         dom0_max_vcpus={vcpus} dom0_vcpus_pin"
    );
    let dom0_line = "console=hvc0 loglevel=4 rdinit=/init panic=-1";
    command
        .args(accelerator(machine.clock))
        .args(["-smp", &(machine.clock.last_cpu() + 1).to_string()])
        .args(["-cpu", CPU, "-m", "3072", "-net", "none"])
        .args(serial_to_file(machine.console))
        .args(["-chardev", "stdio,id=agent,signal=off", "-serial", "chardev:agent"])
        .arg("-kernel")
        .arg(machine.xen)
        .args(["-append", &xen_line, "-initrd"])
        .arg(format!("{} {dom0_line},{}", escaped(machine.kernel), escaped(machine.initramfs)));
    command
}

/// Returns the command for a guest image without Xen: its console is our own standard output, its
/// NIC on QEMU's user network with the given ports of the host's loopback forwarded.
pub fn plain_command(emulator: &Emulator, kernel: &Path, arguments: &str, forwards: &[Forward]) -> Command {
    let mut command = base(emulator);
    let mut network = String::from("user,id=net");
    for forward in forwards {
        network.push_str(&forward.option());
    }
    command
        .args(accelerator(Clock::Wall))
        .args(["-smp", "1", "-cpu", CPU, "-m", "64"])
        .args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net,romfile="])
        .args(["-serial", "stdio", "-kernel"])
        .arg(kernel)
        .args(["-append", arguments]);
    command
}

/// A port of the host's loopback that leads to one of the guest's.
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// "udp" or "tcp".
    pub protocol: &'static str,
    /// Port on 127.0.0.1.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

impl Forward {
    fn option(&self) -> String {
        format!(",hostfwd={}:127.0.0.1:{}-:{}", self.protocol, self.host_port, self.guest_port)
    }
}

/// Returns the command's part that every machine has. `setpriv` makes the kernel end QEMU when the
/// thread that started it is gone, however it went.
fn base(emulator: &Emulator) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    if let Some(root) = &emulator.unpacked {
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        command.arg("env");
        // Debian's QEMU has its accelerators in modules, which it looks for where it was installed.
        command.arg(format!("QEMU_MODULE_DIR={}", libraries.join("qemu").display()));
        command.arg(format!(
            "LD_LIBRARY_PATH={}:{}",
            libraries.display(),
            root.join("lib/x86_64-linux-gnu").display()
        ));
    }
    command
        .arg(&emulator.program)
        .args(["-M", "q35", "-display", "none", "-vga", "none", "-monitor", "none"]);
    command.args(["-no-reboot", "-no-user-config", "-nodefaults"]);
    if let Some(root) = &emulator.unpacked {
        command.arg("-L").arg(root.join("usr/share/qemu"));
        command.arg("-L").arg(root.join("usr/share/seabios"));
    }
    command
}

fn accelerator(clock: Clock) -> &'static [&'static str] {
    match clock {
        Clock::Wall | Clock::WallOfTwoForDom0 => &["-accel", "tcg,thread=multi"],
        Clock::Instructions | Clock::InstructionsOfOneCpu => {
            &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
        }
    }
}

fn serial_to_file(path: &Path) -> [String; 4] {
    let chardev = format!("file,id=console,path={}", escaped(path));
    ["-chardev".into(), chardev, "-serial".into(), "chardev:console".into()]
}

/// Returns a path for an option in which commas separate.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A running QEMU, killed when dropped or when its time is up.
#[derive(Debug)]
pub struct Machine {
    child: Arc<Mutex<Child>>,
    errors: PathBuf,
    deadline: Instant,
}

/// What goes into and comes out of a machine's line to us.
#[derive(Debug)]
pub struct Line {
    /// Into the machine.
    pub input: ChildStdin,
    /// Out of the machine.
    pub output: ChildStdout,
}

impl Machine {
    /// Starts a machine that may run for a given time.
    pub fn start(
        mut command: Command,
        limit: Duration,
        folder: &Path,
        verbosity: Verbosity,
    ) -> Result<(Self, Line)> {
        if verbosity == Verbosity::Verbose {
            eprintln!("+ {}", command_line(&command));
        }
        let errors = folder.join("qemu.log");
        let log = std::fs::File::create(&errors).with_context(|| format!("creating {}", errors.display()))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting QEMU through setpriv (of util-linux)")?;
        let line = match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Line { input, output },
            _ => anyhow::bail!("QEMU was started without its pipes"),
        };
        let machine =
            Machine { child: Arc::new(Mutex::new(child)), errors, deadline: Instant::now() + limit };
        machine.watch();
        Ok((machine, line))
    }

    /// Returns when the machine will be ended by force.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns the host's CPU time that the machine has used.
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", lock(&self.child).id())).ok()?;
        cpu_time(&stat)
    }

    /// Returns the last lines that QEMU itself printed.
    pub fn errors(&self) -> String {
        last_lines(&std::fs::read_to_string(&self.errors).unwrap_or_default(), 5)
    }

    /// Kills the machine at its deadline, unless it is gone by then.
    fn watch(&self) {
        let (child, deadline) = (Arc::downgrade(&self.child), self.deadline);
        thread::spawn(move || {
            thread::sleep(deadline.saturating_duration_since(Instant::now()));
            if let Some(child) = child.upgrade() {
                lock(&child).kill().ok();
            }
        });
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        child.kill().ok();
        child.wait().ok();
    }
}

fn lock(child: &Mutex<Child>) -> std::sync::MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Reads the CPU time in a process's `stat`, by its 14th and 15th word; the second is a name that may have spaces.
fn cpu_time(stat: &str) -> Option<Duration> {
    let (_, words) = stat.rsplit_once(')')?;
    let ticks: u64 = words
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|word| word.parse::<u64>().ok())
        .sum::<Option<u64>>()?;
    // USER_HZ is 100 on every Linux that this runs on.
    Some(Duration::from_millis(10 * ticks))
}

/// Copies a machine's output to ours until it ends.
pub fn show(mut line: Line, mut to: impl std::io::Write) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match line.output.read(&mut buffer).context("reading the machine's console")? {
            0 => return Ok(()),
            len => {
                to.write_all(&buffer[..len])?;
                to.flush()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed() -> Emulator {
        Emulator { program: "qemu-system-x86_64".into(), unpacked: None }
    }

    #[test]
    fn instruction_time_is_one_thread_and_one_nanosecond() {
        let machine = XenMachine {
            xen: Path::new("xen"),
            kernel: Path::new("k,1"),
            initramfs: Path::new("i"),
            clock: Clock::Instructions,
            console: Path::new("c"),
        };
        let line = command_line(&xen_command(&installed(), &machine));
        assert!(line.contains("-accel tcg,thread=single -icount shift=0,sleep=off"), "{line}");
        assert!(line.contains("-initrd 'k,,1 console=hvc0"), "commas in paths are doubled: {line}");
        assert!(line.starts_with("setpriv --pdeathsig KILL -- qemu-system-x86_64 -M q35"), "{line}");
    }

    #[test]
    fn ports_are_forwarded_from_loopback_only() {
        let forwards = [Forward { protocol: "udp", host_port: 4000, guest_port: 7 }];
        let line = command_line(&plain_command(&installed(), Path::new("k"), "app=echo", &forwards));
        assert!(line.contains("-netdev user,id=net,hostfwd=udp:127.0.0.1:4000-:7 "), "{line}");
    }

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "12 (a (b) c) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 7 7 20 0 1 0 5 0";
        assert_eq!(cpu_time(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu_time("12"), None);
    }

    #[test]
    fn a_machine_whose_time_is_up_is_ended() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let folder = std::env::temp_dir().join(format!("boot-qemu-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (_machine, line) =
            Machine::start(command, Duration::from_millis(100), &folder, Verbosity::Normal).unwrap();
        show(line, std::io::sink()).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
