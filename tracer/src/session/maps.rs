//! The kernel's maps, as far as user space reads or writes them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
};
use tracer_ebpf::{
    Bucket, Counters, Entry, Evidence, FlowKey, PeerKey, Proc, role,
    said::Layout,
    storm::{Alike, Repeats},
};

use crate::{event, report::Occupancy};

/// No peer yet: port 0 is nobody's.
const NOBODY: PeerKey = PeerKey { addr: [0; 16], port: 0, _pad: 0 };

/// Handles to the maps.
pub(super) struct Maps {
    procs: HashMap<MapData, u32, Proc>,
    marks: Array<MapData, u32>,
    buckets: Array<MapData, Bucket>,
    conns: HashMap<MapData, u64, Entry>,
    flows: HashMap<MapData, FlowKey, Evidence>,
    counters: PerCpuArray<MapData, Counters>,
    reader: Array<MapData, u32>,
    layouts: HashMap<MapData, u32, Layout>,
    repeats: HashMap<MapData, Alike, Repeats>,
    /// Records.
    pub(super) ring: RingBuf<MapData>,
}

impl Maps {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// If the object lacks one: it then belongs to another version.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut take = |name: &str| -> Result<Map> {
            ebpf.take_map(name).ok_or_else(|| anyhow!("the BPF object has no map {name}"))
        };
        Ok(Self {
            procs: take("PROCS")?.try_into().context("map PROCS")?,
            marks: take("MARKS")?.try_into().context("map MARKS")?,
            buckets: take("BUCKETS")?.try_into().context("map BUCKETS")?,
            conns: take("CONNS")?.try_into().context("map CONNS")?,
            flows: take("FLOWS")?.try_into().context("map FLOWS")?,
            counters: take("COUNTERS")?.try_into().context("map COUNTERS")?,
            reader: take("READER")?.try_into().context("map READER")?,
            layouts: take("LAYOUTS")?.try_into().context("map LAYOUTS")?,
            repeats: take("REPEATS")?.try_into().context("map REPEATS")?,
            ring: take("EVENTS")?.try_into().context("map EVENTS")?,
        })
    }

    /// Watches a process: from now on its connections are recorded.
    ///
    /// # Errors
    /// If the map is full.
    pub(super) fn watch(&mut self, pid: u32, root: u32) -> Result<()> {
        // A child that the kernel side watches already may be inside connect(): what it notes there stays.
        if self.procs.get(&pid, 0).is_ok_and(|known| known.role == role::NGINX && known.root == root) {
            return Ok(());
        }
        self.marks.set(pid % tracer_ebpf::MARKS, 1, 0).context("cannot write to the kernel's map MARKS")?;
        self.procs
            .insert(
                pid,
                Proc {
                    role: role::NGINX,
                    root,
                    last: NOBODY,
                    begun: 0,
                    sk: 0,
                    awaiting: 0,
                    failed: 0,
                    failed_attempt: [0; 2],
                },
                0,
            )
            .with_context(|| format!("cannot watch process {pid}: the table of processes is full"))
    }

    /// No longer watches a process; it may be gone already.
    pub(super) fn unwatch(&mut self, pid: u32) {
        // Gone already: the kernel removed it when it ended.
        let _ = self.procs.remove(&pid);
    }

    /// Tells the kernel side where fields lie in the nginx of a master and its workers.
    ///
    /// # Errors
    /// If the map is full.
    pub(super) fn set_layout(&mut self, master: u32, layout: Layout) -> Result<()> {
        self.layouts.insert(master, layout, 0).with_context(|| {
            format!("the memory of nginx (pid {master}) is not asked: the table of layouts is full")
        })
    }

    /// The master is gone.
    pub(super) fn forget_layout(&mut self, master: u32) {
        // Not there if it could not be probed.
        let _ = self.layouts.remove(&master);
    }

    /// Packet-level evidence of a flow that came too late for its record; it is taken out of the map.
    pub(super) fn take_late_evidence(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Evidence> {
        let key = FlowKey {
            saddr: event::addr(local.ip()),
            daddr: event::addr(remote.ip()),
            sport: local.port(),
            dport: remote.port(),
        };
        let found = self.flows.get(&key, 0).ok()?;
        let _ = self.flows.remove(&key);
        Some(found)
    }

    /// Equal failures that were counted, by their kind.
    pub(super) fn repeats(&self) -> impl Iterator<Item = (Alike, Repeats)> {
        self.repeats.iter().flatten()
    }

    /// The worker of that kind has ended.
    pub(super) fn forget_repeats(&mut self, alike: &Alike) {
        // Nobody else removes it.
        let _ = self.repeats.remove(alike);
    }

    /// Asks the kernel side to wake the reader with the next record.
    ///
    /// # Errors
    /// Those of the system call.
    pub(super) fn ask_for_wakeup(&mut self) -> Result<()> {
        self.reader.set(0, 1, 0).context("cannot write to the kernel's map READER")
    }

    /// Sums the counters of all CPUs.
    #[must_use]
    pub(super) fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        let Ok(values) = self.counters.get(&0, 0) else {
            return sum;
        };
        for c in values.iter() {
            sum.connects += c.connects;
            sum.established += c.established;
            sum.failed += c.failed;
            sum.sent += c.sent;
            sum.lost += c.lost;
            sum.conns_full += c.conns_full;
            sum.proc_lost += c.proc_lost;
            sum.closed += c.closed;
            sum.hints_lost += c.hints_lost;
            sum.found_late += c.found_late;
            sum.drops_rescued += c.drops_rescued;
            sum.counted += c.counted;
        }
        sum
    }

    /// Counts the entries of the maps.
    #[must_use]
    pub(super) fn occupancy(&self) -> Occupancy {
        let placed = (0..self.buckets.len())
            .filter_map(|index| self.buckets.get(&index, 0).ok())
            .map(|bucket| bucket.tags.iter().filter(|tag| **tag != 0).count());
        Occupancy {
            conns: placed.sum::<usize>() + self.conns.keys().flatten().count(),
            procs: self.procs.keys().flatten().count(),
            flows: self.flows.keys().flatten().count(),
        }
    }
}
