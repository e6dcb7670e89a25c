//! tmp
fn main() {
    let t = std::time::Instant::now();
    let tier = std::env::args().nth(1).map(|t| match t.as_str() { "full" => tracer::probes::Tier::Full, "kprobe" => tracer::probes::Tier::Kprobe, _ => tracer::probes::Tier::Tracepoint });
    let r = tracer::probes::load::load(&tracer::probes::load::Options { tier, btf: None, ring_bytes: 1<<20, max_connections: 65536, follow_new: true, debug: std::env::args().nth(2).is_some() });
    eprintln!("{:?}", t.elapsed());
    match r { Err(e) => eprintln!("{e:#}"), Ok(l) => { eprintln!("{:?} {:?}", l.tier, l.tier_reason); for p in &l.probes { eprintln!("{} {:?}", p.probe.name, p.state); } eprintln!("{}", std::fs::read_to_string("/proc/self/status").unwrap().lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM")).collect::<Vec<_>>().join(" ")); } }
}
