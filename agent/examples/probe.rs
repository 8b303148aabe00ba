//! scratch
use flowtilla_agent::capture::*;
fn main() {
    let plan = CapturePlan { tcp: true, udp: true, scopes: ScopeSet::default(), max_flows: 65536 };
    let mut c = Capture::attach(&plan, std::path::Path::new("/sys/fs/cgroup/unified")).unwrap();
    println!("{:#?}", c.report());
    let mut due = vec![];
    for i in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(300));
        c.drain_names(|n| println!("NAME {n:?}"));
        c.drain_flows(|o| { if let flowtilla_agent_core::observe::Observation::Opened { cookie, .. } = &o { due.push(*cookie) }; println!("FLOW {o:?}") }).unwrap();
        if i % 5 == 1 { c.snap(&due).unwrap(); due.clear(); }
        if i % 3 == 0 { c.walk_udp(|o| println!("UDP {o:?}")).unwrap(); }
    }
    println!("{:?}", c.drops());
}
