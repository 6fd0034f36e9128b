//! Makes sure that everything is there that a boot needs: QEMU, and the packages of which the test
//! bed is made. Knows what is wanted and why, not how packages are fetched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::apt::{Apt, Rights, exists};
use crate::progress::{Step, Verbosity};
use crate::workspace::Workspace;

/// Raised when other packages are wanted, so that an older download is completed.
const RECIPE: u32 = 3;

/// The emulator's packages.
const QEMU_PACKAGES: [&str; 2] = ["qemu-system-x86", "seabios"];

/// What those depend on that is no library: firmware, and the emulator's own modules.
const QEMU_PARTS: [&str; 2] = ["qemu-system-data", "qemu-system-common"];

/// Whether the emulator may be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// It is installed where that is allowed.
    Installed,
    /// It is unpacked under target/ whatever is allowed.
    Unpacked,
}

/// Everything that was found or fetched.
#[derive(Debug, Clone)]
pub struct Provisions {
    /// The emulator.
    pub emulator: Emulator,
    /// Folder below which the test bed's packages are unpacked.
    pub root: PathBuf,
    /// What the packages are.
    pub versions: Versions,
}

/// An emulator and where its parts are.
#[derive(Debug, Clone)]
pub struct Emulator {
    /// qemu-system-x86_64.
    pub program: PathBuf,
    /// Folder below which it was unpacked; none when it is installed.
    pub unpacked: Option<PathBuf>,
}

/// The versions that decide where files lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    recipe: u32,
    /// Xen's, as in package and folder names: "4.17".
    pub xen: String,
    /// Linux's, as in file and folder names: "6.1.0-44-amd64".
    pub linux: String,
}

/// Finds, installs or downloads what is missing.
pub fn provide(workspace: &Workspace, placement: Placement, verbosity: Verbosity) -> Result<Provisions> {
    let _lock = workspace.lock()?;
    let emulator = provide_emulator(workspace, placement, verbosity)?;
    let (root, versions) = provide_packages(workspace, verbosity)?;
    Ok(Provisions { emulator, root, versions })
}

/// Finds, installs or downloads the emulator alone.
pub fn provide_qemu(workspace: &Workspace, verbosity: Verbosity) -> Result<Emulator> {
    let _lock = workspace.lock()?;
    provide_emulator(workspace, Placement::Installed, verbosity)
}

fn provide_emulator(workspace: &Workspace, placement: Placement, verbosity: Verbosity) -> Result<Emulator> {
    const PROGRAM: &str = "qemu-system-x86_64";
    if placement == Placement::Installed && exists(PROGRAM) {
        return Ok(Emulator { program: PROGRAM.into(), unpacked: None });
    }
    let data = workspace.data("")?;
    let root = data.join("qemu");
    let unpacked = Emulator { program: root.join("usr/bin").join(PROGRAM), unpacked: Some(root.clone()) };
    let complete = root.join("complete");
    if complete.exists() {
        return Ok(unpacked);
    }
    let mut apt = Apt::find(&data, verbosity)?;
    if placement == Placement::Installed && apt.rights() != Rights::None {
        let step = Step::begin(format!("installing {} with apt-get", QEMU_PACKAGES.join(" and ")));
        if apt.install(&QEMU_PACKAGES).is_err() {
            // The lists may be older than what the archive still has.
            apt.update(&data)?;
            apt.install(&QEMU_PACKAGES)?;
        }
        step.done("installed on this machine");
        return Ok(Emulator { program: PROGRAM.into(), unpacked: None });
    }
    let step = Step::begin(format!("downloading QEMU, nothing is installed, into {}", root.display()));
    let packages: Vec<String> = QEMU_PACKAGES.iter().chain(&QEMU_PARTS).map(ToString::to_string).collect();
    let libraries = apt.with_libraries(&packages)?;
    let mut wanted = apt.not_installed(libraries);
    wanted.extend(packages);
    wanted.sort_unstable();
    wanted.dedup();
    fetch(&mut apt, wanted, &data, &root, &step)?;
    fs::write(&complete, "")?;
    step.done("unpacked");
    Ok(unpacked)
}

/// Valgrind, and where its tools are.
#[derive(Debug, Clone)]
pub struct Valgrind {
    program: PathBuf,
    /// Its tools, where it is not installed.
    tools: Option<PathBuf>,
}

impl Valgrind {
    /// Returns a command that runs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(tools) = &self.tools {
            command.env("VALGRIND_LIB", tools);
        }
        command
    }
}

/// Finds, installs or downloads valgrind.
pub fn provide_valgrind(workspace: &Workspace, verbosity: Verbosity) -> Result<Valgrind> {
    const NAME: &str = "valgrind";
    let installed = Valgrind { program: NAME.into(), tools: None };
    if exists(NAME) {
        return Ok(installed);
    }
    let _lock = workspace.lock()?;
    let data = workspace.data("")?;
    let root = data.join(NAME);
    let unpacked =
        Valgrind { program: root.join("usr/bin/valgrind"), tools: Some(root.join("usr/libexec/valgrind")) };
    let complete = root.join("complete");
    if complete.exists() {
        return Ok(unpacked);
    }
    let mut apt = Apt::find(&data, verbosity)?;
    if apt.rights() != Rights::None {
        let step = Step::begin("installing valgrind with apt-get");
        if apt.install(&[NAME]).is_err() {
            apt.update(&data)?;
            apt.install(&[NAME])?;
        }
        step.done("installed on this machine");
        return Ok(installed);
    }
    let step = Step::begin(format!("downloading valgrind, nothing is installed, into {}", root.display()));
    fetch(&mut apt, vec![NAME.to_owned()], &data, &root, &step)?;
    fs::write(&complete, "")?;
    step.done("unpacked");
    Ok(unpacked)
}

fn provide_packages(workspace: &Workspace, verbosity: Verbosity) -> Result<(PathBuf, Versions)> {
    let data = workspace.data("")?;
    let root = data.join("root");
    let stamp = data.join("versions.json");
    if let Some(versions) = read_stamp(&stamp) {
        return Ok((root, versions));
    }
    let step = Step::begin(format!(
        "downloading Xen and a Linux dom0, nothing is installed, into {}",
        root.display()
    ));
    let mut apt = Apt::find(&data, verbosity)?;
    let (hypervisor, xen) = apt.newest("xen-hypervisor-", "-amd64")?;
    let kernel = apt
        .depends("linux-image-amd64")?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .context("linux-image-amd64 depends on no linux-image-* package")?;
    let linux = kernel.trim_start_matches("linux-image-").trim_end_matches("-unsigned").to_owned();
    let programs = [
        format!("xen-utils-{xen}"),
        "xen-utils-common".into(),
        "xenstore-utils".into(),
        "iproute2".into(),
        // Loaded by libc when a thread is cancelled, which libxl does after every `xl create`.
        "libgcc-s1".into(),
        "xz-utils".into(),
        // Runs the backend's unit in a test.
        "systemd".into(),
        // Installs and removes its package there. busybox's own tells a package's scripts nothing of what is done.
        "dpkg".into(),
        "tar".into(),
    ];
    let mut wanted = apt.with_libraries(&programs)?;
    wanted.extend([hypervisor, kernel, "busybox-static".to_owned()]);
    fetch(&mut apt, wanted.into_iter().collect(), &data, &root, &step)?;
    let versions = Versions { recipe: RECIPE, xen, linux };
    fs::write(&stamp, serde_json::to_string(&versions)?)
        .with_context(|| format!("writing {}", stamp.display()))?;
    step.done(&format!("Xen {}, Linux {}", versions.xen, versions.linux));
    Ok((root, versions))
}

/// Downloads and unpacks, with fresh package lists if the first attempt fails.
fn fetch(apt: &mut Apt, packages: Vec<String>, data: &Path, root: &Path, step: &Step) -> Result<()> {
    let debs = data.join("debs");
    let files = match apt.download(&packages, &debs, step) {
        Ok(files) => files,
        Err(first) => {
            step.update(&format!("{first:#}; trying again with new package lists"));
            apt.update(data)?;
            apt.download(&packages, &debs, step)?
        }
    };
    apt.unpack(&files, root, step)
}

fn read_stamp(stamp: &Path) -> Option<Versions> {
    let versions: Versions = serde_json::from_str(&fs::read_to_string(stamp).ok()?).ok()?;
    (versions.recipe == RECIPE).then_some(versions)
}
