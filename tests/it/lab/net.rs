//! A network of its own: namespaces around one bridge, every link shaped alike.
//!
//! ```text
//!  fl1x1-n1 [eth0 10.77.0.1]──n1┐
//!  fl1x1-n2 [eth0 10.77.0.2]──n2┤ br0   the bridge has a namespace of its own (fl1x1-switch), so that the
//!  fl1x1-reg[eth0 10.77.0.9]──n9┘       machine's own network is left as it is
//! ```
//! A link is shaped at both its ends: what a node sends at `eth0`, what it receives at the bridge's port.
//! A second bridge, `br1`, is a second zone, joined to the first by one thin link (`thin0`, `thin1`).
//! Only the network is apart: mounts and /sys are the machine's, which containerd needs.

use std::process::Command;

use super::{Result, process::output};

/// What `tc` puts on each end of a link; `None` leaves it as fast as the machine is.
/// The burst is what the kernel sends in one go; 128 KiB keeps tbf from losing rate to the timer's grain.
pub(crate) const SHAPE_100_MBIT: &str = "rate 100mbit burst 128kb latency 50ms";

/// The bridge.
pub(crate) struct Switch {
    lab: String,
    shape: Option<String>,
}

/// A namespace plugged into the bridge.
#[derive(Clone)]
pub(crate) struct Namespace {
    name: String,
    switch: String,
    index: u8,
}

/// What went over an interface, frames with all headers, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Switch {
    /// `lab` is the lab's short name, the beginning of every namespace's.
    pub(crate) fn new(lab: &str, shape: Option<&str>) -> Result<Switch> {
        let switch = Switch { lab: lab.to_owned(), shape: shape.map(str::to_owned) };
        let name = switch.name();
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {name} link add br0 type bridge forward_delay 0 mcast_snooping 0"))?;
        ip(&format!("-n {name} link set br0 up"))?;
        switch.leave_frames_alone()?;
        Ok(switch)
    }

    fn name(&self) -> String {
        format!("{}-switch", self.lab)
    }

    /// A switch has no firewall: where Docker has loaded the machine's, every frame would pass it three times.
    fn leave_frames_alone(&self) -> Result<()> {
        let setting = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        let mut switch = within(&self.name(), "sh");
        switch.args(["-c", &format!("! [ -e {setting} ] || echo 0 > {setting}")]);
        output(switch).map(|_| ())
    }

    /// Adds the second zone's bridge, and the thin link to the first, shaped both ways.
    pub(crate) fn add_zone(&self, shape: &str) -> Result<()> {
        let name = self.name();
        ip(&format!("-n {name} link add br1 type bridge forward_delay 0 mcast_snooping 0"))?;
        ip(&format!("-n {name} link set br1 up"))?;
        ip(&format!("-n {name} link add thin0 type veth peer name thin1"))?;
        for (end, bridge) in [("thin0", "br0"), ("thin1", "br1")] {
            ip(&format!("-n {name} link set {end} master {bridge} up"))?;
            tc(&format!("-n {name} qdisc add dev {end} root tbf {shape}"))?;
        }
        Ok(())
    }

    /// What went over the thin link: `sent` to the second zone, `received` from it.
    pub(crate) fn thin_link(&self) -> Result<Traffic> {
        traffic(&self.name(), "thin0")
    }

    /// Makes a namespace with the address `10.77.0.<index>` and counters for what it receives from whom.
    pub(crate) fn plug(&self, name: &str, index: u8) -> Result<Namespace> {
        self.plug_into("br0", name, index)
    }

    /// The same in the second zone.
    pub(crate) fn plug_into_zone(&self, name: &str, index: u8) -> Result<Namespace> {
        self.plug_into("br1", name, index)
    }

    fn plug_into(&self, bridge: &str, name: &str, index: u8) -> Result<Namespace> {
        let switch = self.name();
        let namespace = Namespace { name: format!("{}-{name}", self.lab), switch: switch.clone(), index };
        let Namespace { name, .. } = &namespace;
        let address = namespace.address();
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {switch} link add n{index} type veth peer name eth0 netns {name}"))?;
        ip(&format!("-n {switch} link set n{index} master {bridge} up"))?;
        ip(&format!("-n {name} addr add {address}/16 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        if let Some(shape) = &self.shape {
            tc(&format!("-n {name} qdisc add dev eth0 root tbf {shape}"))?;
            tc(&format!("-n {switch} qdisc add dev n{index} root tbf {shape}"))?;
        }
        Ok(namespace)
    }
}

impl Namespace {
    /// As `ip netns` knows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn address(&self) -> String {
        format!("10.77.0.{}", self.index)
    }

    /// A program in this network.
    pub(crate) fn command(&self, program: &str) -> Command {
        within(&self.name, program)
    }

    /// Counts, from now on, the bytes received from each of `others`.
    pub(crate) fn count_from(&self, others: &[&Namespace]) -> Result<()> {
        let mut rules =
            "add table ip lab\nadd chain ip lab in { type filter hook input priority 0 ; }\n".to_owned();
        for other in others {
            let address = other.address();
            rules.push_str(&format!("add rule ip lab in ip saddr {address} counter\n"));
        }
        let mut nft = self.command("nft");
        nft.arg(rules);
        output(nft).map(|_| ())
    }

    /// Bytes received from `other` since `count_from`, IP headers included.
    pub(crate) fn received_from(&self, other: &Namespace) -> Result<u64> {
        let mut nft = self.command("nft");
        nft.args(["list", "table", "ip", "lab"]);
        let wanted = format!("ip saddr {} counter", other.address());
        let listed = output(nft)?;
        let line = listed.lines().find(|line| line.contains(&wanted)).ok_or("nft lists no such counter")?;
        let bytes = line.rsplit_once("bytes ").and_then(|(_, bytes)| bytes.trim().parse().ok());
        bytes.ok_or_else(|| format!("a counter without bytes: {line}").into())
    }

    /// What went over `eth0` since the namespace was made.
    pub(crate) fn traffic(&self) -> Result<Traffic> {
        traffic(&self.name, "eth0")
    }

    /// Takes the link down or up again, as when a cable is pulled.
    pub(crate) fn connected(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&format!("-n {} link set n{} {state}", self.switch, self.index))
    }

    /// Shapes what this namespace sends anew, for example `rate 8mbit burst 32kb latency 50ms`.
    pub(crate) fn shape_sending(&self, shape: &str) -> Result<()> {
        tc(&format!("-n {} qdisc replace dev eth0 root tbf {shape}", self.name))
    }
}

fn within(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

fn traffic(namespace: &str, interface: &str) -> Result<Traffic> {
    let mut cat = within(namespace, "cat");
    cat.arg("/proc/net/dev");
    let table = output(cat)?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    let numbers: Vec<u64> =
        line.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // Columns of /proc/net/dev: eight of what came in, bytes first, then eight of what went out.
    match (numbers.first(), numbers.get(8)) {
        (Some(received), Some(sent)) => Ok(Traffic { received: *received, sent: *sent }),
        _ => Err(format!("no {interface} in {namespace}").into()),
    }
}

fn ip(arguments: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(arguments.split(' '));
    output(ip).map(|_| ())
}

fn tc(arguments: &str) -> Result<()> {
    let mut tc = Command::new("tc");
    tc.args(arguments.split(' '));
    output(tc).map(|_| ())
}
