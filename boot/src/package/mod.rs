//! The Debian package: what is in it, and what it says of itself. Knows the parts, and neither the archive's format nor
//! how the parts are built.

pub mod deb;
pub mod inspect;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::commands::Context;
use crate::images::Programs;
use crate::products;
use crate::progress::run;
use crate::workspace::Workspace;
use deb::{Entry, Kind, Package, gzip};

/// Where the package's files lie in a host.
pub mod installed {
    /// Our guest image.
    pub const GUEST: &str = "/usr/lib/drayage/drayage-guest";
    /// The configuration.
    pub const CONFIGURATION: &str = "/etc/drayage/drayage.toml";
    /// The hotplug script.
    pub const VIF_SCRIPT: &str = "/etc/xen/scripts/vif-drayage";
    /// The backend.
    pub const PROGRAM: &str = "/usr/sbin/drayage";
}

const NAME: &str = "drayage";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The files of a package that are written by hand.
macro_rules! packaging {
    ($name:literal) => {
        include_str!(concat!("../../../dom0-tool/packaging/", $name))
    };
}

/// Builds the programs and the package of them, and returns its path.
pub fn build(context: &Context, out: Option<&Path>) -> Result<PathBuf> {
    let programs = products::programs(&context.workspace, context.verbosity)?;
    pack(context, &programs, out)
}

/// Makes the package of programs that are built, and returns its path.
pub fn pack(context: &Context, programs: &Programs, out: Option<&Path>) -> Result<PathBuf> {
    let workspace = &context.workspace;
    let package = Package {
        fields: fields(),
        scripts: vec![
            ("postinst", packaging!("postinst")),
            ("postrm", packaging!("postrm")),
            ("prerm", packaging!("prerm")),
        ],
        entries: entries(context, &programs.drayage, &programs.guest)?,
        time_s: time_s(workspace),
    };
    let bytes = package.finish()?;
    inspect::inspect(&bytes).context("the package is not as it should be")?;
    let folder = match out {
        Some(folder) => folder.to_owned(),
        None => workspace.data("package")?,
    };
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join(format!("{NAME}_{VERSION}_amd64.deb"));
    fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn fields() -> Vec<(&'static str, String)> {
    let description = "network backend for Xen guests that hands packets over in containers\n \
        Drayage serves the network interfaces of Xen guests from a process in dom0 or in a driver\n \
        domain. It aggregates packets into containers for guests that understand them, the unikernel\n \
        in this package among them, and serves stock Linux guests beside the kernel's own backend.\n .\n \
        Nothing is started by the installation: see drayage(8), and systemctl enable --now drayage.";
    vec![
        ("Package", NAME.into()),
        ("Version", VERSION.into()),
        ("Architecture", "amd64".into()),
        ("Maintainer", "The Drayage developers <maintainers@drayage.invalid>".into()),
        ("Section", "net".into()),
        ("Priority", "optional".into()),
        // The program is static; without Xen's own tools there are no guests to serve.
        ("Recommends", "xen-utils-common".into()),
        ("Description", description.into()),
    ]
}

fn entries(context: &Context, drayage: &Path, guest: &Path) -> Result<Vec<Entry>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let ordinary = |path: String, mode, contents| Entry { path, mode, contents, kind: Kind::Ordinary };
    let mut all = vec![
        ordinary(installed::PROGRAM.into(), 0o755, read(drayage)?),
        ordinary(installed::GUEST.into(), 0o644, read(guest)?),
        ordinary(
            "/usr/lib/systemd/system/drayage.service".into(),
            0o644,
            packaging!("drayage.service").into(),
        ),
        Entry {
            path: installed::CONFIGURATION.into(),
            mode: 0o644,
            contents: packaging!("drayage.toml").into(),
            kind: Kind::Configuration,
        },
        // For plain `vif = [...]` lines.
        Entry {
            path: installed::VIF_SCRIPT.into(),
            mode: 0o755,
            contents: packaging!("../hotplug/vif-drayage").into(),
            kind: Kind::Configuration,
        },
    ];
    let document = |name: &str| format!("/usr/share/doc/{NAME}/{name}");
    let root = context.workspace.root();
    all.push(ordinary(document("changelog.gz"), 0o644, gzip(&read(&root.join("CHANGELOG.md"))?)?));
    all.push(ordinary(document("README.md.gz"), 0o644, gzip(&read(&root.join("README.md"))?)?));
    all.push(ordinary(document("copyright"), 0o644, copyright(context)?.into_bytes()));
    let manual = context.workspace.data("package/man")?;
    // Pages of commands that are no more.
    fs::remove_dir_all(&manual).ok();
    run(Command::new(drayage).arg("man").arg(&manual), context.verbosity)?;
    for page in fs::read_dir(&manual).with_context(|| format!("reading {}", manual.display()))? {
        let page = page?.path();
        let name = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.push(ordinary(format!("/usr/share/man/man8/{name}.gz"), 0o644, gzip(&read(&page)?)?));
    }
    for (shell, path) in [
        ("bash", "/usr/share/bash-completion/completions/drayage"),
        ("zsh", "/usr/share/zsh/vendor-completions/_drayage"),
        ("fish", "/usr/share/fish/vendor_completions.d/drayage.fish"),
    ] {
        let text = run(Command::new(drayage).args(["completions", shell]), context.verbosity)?;
        all.push(ordinary(path.into(), 0o644, format!("{}\n", text.trim_end()).into_bytes()));
    }
    Ok(all)
}

/// Returns the licence, with the licences of what is linked into the programs.
fn copyright(context: &Context) -> Result<String> {
    let mut text = packaging!("copyright").to_owned();
    text.push_str("Comment:\n The programs contain parts of Rust's standard library (MIT or Apache-2.0);\n");
    text.push_str(" drayage contains parts of the GNU C library (LGPL-2.1-or-later); and these crates:\n");
    let mut crates = BTreeSet::new();
    for package in ["drayage", "drayage-kernel"] {
        let mut cargo = context.workspace.cargo();
        cargo.args(["tree", "--locked", "-e", "normal", "--prefix", "none", "-f", "{p}\t{l}", "-p", package]);
        for line in run(&mut cargo, context.verbosity)?.lines() {
            let Some((name, licence)) = line.split_once('\t') else { continue };
            // Those of this workspace have a path behind their version.
            if !name.contains('(') || name.ends_with("(proc-macro)") {
                let licence = licence.trim_end_matches(" (*)");
                crates.insert(format!(" {} ({licence})", name.trim_end_matches(" (proc-macro)")));
            }
        }
    }
    for line in crates {
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

/// Returns the time of the package's files: that of the source.
fn time_s(workspace: &Workspace) -> u64 {
    if let Some(time) = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok()) {
        return time;
    }
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"]).current_dir(workspace.root());
    let output = git.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().parse());
    // Source without a history has no time.
    output.ok().and_then(Result::ok).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(configuration: Kind, mode: u32) -> Package {
        let entry = |path: &str, mode, contents: &[u8], kind| Entry {
            path: path.into(),
            mode,
            contents: contents.to_vec(),
            kind,
        };
        Package {
            fields: fields(),
            scripts: vec![("postinst", packaging!("postinst")), ("prerm", packaging!("prerm"))],
            entries: vec![
                entry("/usr/sbin/drayage", mode, b"\x7fELF", Kind::Ordinary),
                entry("/etc/drayage/drayage.toml", 0o644, b"# nothing\n", configuration),
                entry("/usr/share/doc/drayage/copyright", 0o644, b"mine", Kind::Ordinary),
                entry("/usr/share/doc/drayage/changelog.gz", 0o644, b"first", Kind::Ordinary),
            ],
            time_s: 1_700_000_000,
        }
    }

    #[test]
    fn a_package_reads_back_and_is_always_the_same() {
        let bytes = package(Kind::Configuration, 0o755).finish().unwrap();
        assert_eq!(bytes, package(Kind::Configuration, 0o755).finish().unwrap());
        // deb(5): an ar archive whose first member is the format's version.
        assert_eq!(&bytes[..24], b"!<arch>\ndebian-binary   ");
        assert_eq!(&bytes[68..72], b"2.0\n");
        let unpacked = inspect::inspect(&bytes).unwrap();
        assert_eq!(unpacked.field("Package").unwrap(), "drayage");
        assert_eq!(unpacked.control_text("conffiles").unwrap(), "/etc/drayage/drayage.toml\n");
        assert!(unpacked.control_text("md5sums").unwrap().contains("  usr/sbin/drayage\n"));
        assert!(unpacked.control["/postinst"].mode == 0o755);
        let paths: Vec<&str> = unpacked.data.keys().map(String::as_str).collect();
        assert!(paths.contains(&"/usr/share/doc/drayage") && paths.contains(&"/etc/drayage/drayage.toml"));
    }

    #[test]
    fn what_a_package_must_not_be_is_found() {
        for (package, named) in [
            (package(Kind::Ordinary, 0o755), "/etc/drayage/drayage.toml: its sum is"),
            (package(Kind::Configuration, 0o644), "/usr/sbin/drayage: has mode 644"),
            (package(Kind::Configuration, 0o777), "others may write it"),
            (package(Kind::Configuration, 0o4755), "special bits"),
        ] {
            let error = format!("{:#}", inspect::inspect(&package.finish().unwrap()).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
        let mut unasked = package(Kind::Configuration, 0o755);
        unasked.scripts = vec![("postinst", "#!/bin/sh\nset -e\nsystemctl enable drayage\n")];
        let error = inspect::inspect(&unasked.finish().unwrap()).unwrap_err().to_string();
        assert!(error.contains("unasked"), "{error}");
    }

    #[test]
    fn debian_s_own_tool_reads_it() {
        if !crate::apt::exists("dpkg-deb") {
            eprintln!("SKIPPED: no dpkg-deb on this machine");
            return;
        }
        let path = std::env::temp_dir().join(format!("drayage-{}.deb", std::process::id()));
        fs::write(&path, package(Kind::Configuration, 0o755).finish().unwrap()).unwrap();
        let ask = |option: &str| {
            run(Command::new("dpkg-deb").arg(option).arg(&path), crate::progress::Verbosity::Normal).unwrap()
        };
        assert!(ask("--field").contains("Description: network backend for Xen guests"));
        let contents = ask("--contents");
        assert!(contents.contains("-rwxr-xr-x root/root         4 2023-11-14"), "{contents}");
        assert!(contents.contains(" ./usr/sbin/drayage"), "{contents}");
        fs::remove_file(path).unwrap();
    }
}
