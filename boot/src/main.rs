//! The launcher behind `cargo boot`.
#![forbid(unsafe_code)]

use std::time::Duration;

use drayage_boot::dom0::{Guest, Mode, Start};
use drayage_boot::images::Programs;
use drayage_boot::qemu::Clock;
use drayage_boot::setup::Placement;
use drayage_boot::*;

fn main() -> anyhow::Result<()> {
    let ws = workspace::Workspace::find()?;
    let v = progress::Verbosity::Verbose;
    let prov = setup::provide(&ws, Placement::Installed, v)?;
    let peer = products::peer(&ws, v)?;
    let programs = Programs { peer, drayage: None, guest: None };
    let clock = if std::env::args().any(|a| a == "icount") { Clock::Instructions } else { Clock::Wall };
    let mut bed = testbed::Testbed::boot(&ws, &prov, &programs, clock, Duration::from_secs(300), v)?;
    let run = |bed: &mut testbed::Testbed| -> anyhow::Result<()> {
        println!("{}", bed.dom0.shell("cat /proc/uptime; xl info; xl list; free -m; ls /dev/xen")?);
        for mode in Mode::ALL {
            let t = std::time::Instant::now();
            let t0 = bed.dom0.agent().clock_ns()?;
            let script = "ip link set lo up; ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0; peer recv & peer serve-echo";
            bed.dom0.create(
                &Guest {
                    name: "lin".into(),
                    mode,
                    kernel: images::inside::LINUX.into(),
                    ramdisk: Some(images::inside::LINUX_INITRAMFS.into()),
                    arguments: format!(
                        "console=hvc0 loglevel=4 rdinit=/init {}",
                        drayage_peer::init::encode(script)
                    ),
                    memory_mib: 256,
                    vifs: vec!["mac=00:16:3e:00:00:02,script=/bin/true".into()],
                    extra_lines: vec![],
                },
                Start::Running,
            )?;
            let t1 = bed.dom0.agent().clock_ns()?;
            let id = bed.dom0.domain_id("lin")?;
            bed.dom0.shell(&format!("ip link set vif{id}.0 up; ip addr add 10.0.0.1/24 dev vif{id}.0"))?;
            println!(
                "{}",
                bed.dom0.shell("peer ping 10.0.0.2 --until-answered --count 600 --interval-ms 100")?
            );
            let t2 = bed.dom0.agent().clock_ns()?;
            println!(
                "{mode:?}: create {} ms, ping after {} ms, wall {:?}",
                (t1 - t0) / 1000000,
                (t2 - t0) / 1000000,
                t.elapsed()
            );
            println!(
                "{}",
                bed.dom0.shell("peer ping 10.0.0.2; peer udp-echo 10.0.0.2; peer tcp-echo 10.0.0.2")?
            );
            for frame in [60, 1514] {
                println!("{}", bed.dom0.shell(&format!("peer send --dev vif{id}.0 --dst-mac 00:16:3e:00:00:02 --dst-ip 10.0.0.2 --src-ip 10.0.0.1 --frame {frame} --count 20000; sleep 1; /usr/sbin/ip -s link show vif{id}.0"))?);
            }
            println!("{}", bed.dom0.console("lin")?);
            bed.dom0.destroy("lin")?;
        }
        Ok(())
    };
    if let Err(e) = run(&mut bed) {
        return Err(bed.explain(e));
    }
    bed.power_off()
}
