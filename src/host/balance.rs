//! Which CPUs each instance runs on: as many as it has vCPUs, shared with others,
//! so that no CPU carries much more than another. Pure; a vCPU weighs one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// CPUs, by their numbers.
pub type Cpus = BTreeSet<u32>;

/// The instances that run, and the CPUs that each has.
#[derive(Clone, Debug, Default)]
pub struct Balance {
    // None when the kernel knows of none.
    nodes: Vec<Cpus>,
    shared: BTreeMap<Uuid, Seat>,
    pinned: BTreeMap<Uuid, Cpus>,
}

#[derive(Clone, Debug)]
struct Seat {
    vcpus: usize,
    cpus: Cpus,
}

impl Balance {
    /// Nobody runs; `nodes` are the NUMA nodes' CPUs.
    pub fn new(nodes: Vec<Cpus>) -> Balance {
        Balance { nodes, ..Balance::default() }
    }

    /// Takes up an instance that shares, or gives it another number of vCPUs.
    /// A new one stays on what it `has` as far as that fits.
    pub fn share(&mut self, id: Uuid, vcpus: usize, has: Cpus) {
        self.pinned.remove(&id);
        self.shared.entry(id).or_insert(Seat { vcpus, cpus: has }).vcpus = vcpus;
    }

    /// Takes up an instance that has CPUs alone.
    pub fn pin(&mut self, id: Uuid, cpus: Cpus) {
        self.shared.remove(&id);
        self.pinned.insert(id, cpus);
    }

    /// Forgets an instance; whether it was known.
    pub fn leave(&mut self, id: Uuid) -> bool {
        let shared = self.shared.remove(&id).is_some();
        self.pinned.remove(&id).is_some() || shared
    }

    /// The CPUs of an instance that shares; none before it was fitted.
    pub fn cpus(&self, id: Uuid) -> Option<&Cpus> {
        self.shared.get(&id).map(|seat| &seat.cpus).filter(|cpus| !cpus.is_empty())
    }

    /// The CPUs of `all` that nobody has alone; all of them rather than none.
    fn free(&self, all: &Cpus) -> Cpus {
        let free: Cpus = all
            .iter()
            .filter(|cpu| !self.pinned.values().any(|p| p.contains(cpu)))
            .copied()
            .collect();
        if free.is_empty() { all.clone() } else { free }
    }

    /// Gives one instance of those that share as many of the CPUs as it shall
    /// have; nobody else moves.
    pub fn fit(&mut self, id: Uuid, all: &Cpus) {
        self.fit_within(id, &self.free(all));
    }

    fn fit_within(&mut self, id: Uuid, pool: &Cpus) {
        let Some(Seat { vcpus, mut cpus }) = self.shared.remove(&id) else { return };
        let wanted = vcpus.min(pool.len());
        let loads = self.loads(pool);
        cpus.retain(|cpu| pool.contains(cpu));
        let load = |cpu: &u32| loads.get(cpu).copied().unwrap_or(0);
        while cpus.len() > wanted {
            let most = cpus.iter().copied().max_by_key(|cpu| (load(cpu), turn(id, *cpu, pool)));
            cpus.remove(&most.unwrap_or_default());
        }
        let homes = self.nodes.iter().map(Some).chain([None]);
        let choices = homes.map(|home| {
            let is_home = |cpu: &u32| home.is_some_and(|home| home.contains(cpu));
            let mut others: Vec<u32> = pool.difference(&cpus).copied().collect();
            others.sort_by_key(|cpu| (load(cpu), !is_home(cpu), turn(id, *cpu, pool)));
            let chosen: Cpus = cpus.iter().chain(&others).copied().take(wanted).collect();
            (chosen.iter().filter(|cpu| is_home(cpu)).count(), chosen)
        });
        // Together in one node; of equal nodes that where its turn is.
        let best = choices.max_by_key(|(at_home, chosen)| {
            (*at_home, Reverse(chosen.first().map(|c| turn(id, *c, pool))))
        });
        let cpus = best.map_or(cpus, |(_, chosen)| chosen);
        self.shared.insert(id, Seat { vcpus, cpus });
    }

    /// Fits every instance, and moves the fewest that make the CPUs' loads
    /// differ by one vCPU at most. Gives those whose CPUs are others now.
    pub fn level(&mut self, all: &Cpus) -> BTreeSet<Uuid> {
        let pool = self.free(all);
        let before: BTreeMap<Uuid, Cpus> =
            self.shared.iter().map(|(id, seat)| (*id, seat.cpus.clone())).collect();
        for id in before.keys() {
            self.fit_within(*id, &pool);
        }
        // Each round takes a vCPU from a CPU with two more, so this ends.
        while self.move_one(&pool) {}
        let moved = before.into_iter().filter(|(id, cpus)| self.shared[id].cpus != *cpus);
        moved.map(|(id, _)| id).collect()
    }

    fn move_one(&mut self, pool: &Cpus) -> bool {
        let loads = self.loads(pool);
        let Some((&to, &least)) = loads.iter().min_by_key(|(_, load)| **load) else { return false };
        let most = loads.values().copied().max().unwrap_or(least);
        if most < least + 2 {
            return false;
        }
        let neighbours = |seat: &Seat, cpu: u32| {
            let node = self.nodes.iter().find(|node| node.contains(&cpu));
            node.map_or(0, |node| {
                seat.cpus.iter().filter(|c| **c != cpu && node.contains(c)).count()
            })
        };
        let moves = self.shared.iter().filter(|(_, seat)| !seat.cpus.contains(&to)).flat_map(
            |(id, seat)| {
                let from = seat.cpus.iter().filter(|cpu| loads[*cpu] == most);
                from.map(|from| {
                    (neighbours(seat, to) as i64 - neighbours(seat, *from) as i64, *id, *from)
                })
            },
        );
        // More have the fullest CPU than the emptiest, so one of them can go there.
        let Some((_, id, from)) = moves.max_by_key(|(gain, ..)| *gain) else { return false };
        if let Some(seat) = self.shared.get_mut(&id) {
            seat.cpus.remove(&from);
            seat.cpus.insert(to);
        }
        true
    }

    fn loads(&self, pool: &Cpus) -> BTreeMap<u32, usize> {
        let mut loads: BTreeMap<u32, usize> = pool.iter().map(|cpu| (*cpu, 0)).collect();
        for cpu in self.shared.values().flat_map(|seat| &seat.cpus) {
            if let Some(load) = loads.get_mut(cpu) {
                *load += 1;
            }
        }
        loads
    }
}

/// Where a CPU stands in an instance's own order, which begins anywhere: the
/// first instances of several services, and the host's own work, are not all on
/// the first CPU.
fn turn(id: Uuid, cpu: u32, pool: &Cpus) -> usize {
    let count = pool.len().max(1);
    let first = (id.as_u128() % count as u128) as usize;
    (pool.range(..cpu).count() + count - first) % count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nth(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn start(balance: &mut Balance, n: u128, vcpus: usize, all: &Cpus) -> BTreeSet<Uuid> {
        balance.share(nth(n), vcpus, Cpus::new());
        balance.fit(nth(n), all);
        balance.level(all)
    }

    fn spread(balance: &Balance, pool: &Cpus) -> usize {
        let loads = balance.loads(pool);
        loads.values().max().unwrap() - loads.values().min().unwrap()
    }

    #[test]
    fn two_are_apart_and_what_is_left_is_levelled() {
        let (mut balance, all) = (Balance::default(), Cpus::from([0, 1]));
        for n in [2, 4, 6, 8] {
            assert!(start(&mut balance, n, 1, &all).is_empty());
        }
        let (of_2, of_4) = (balance.cpus(nth(2)).unwrap(), balance.cpus(nth(4)).unwrap());
        assert_ne!(of_2, of_4);
        let gone: Vec<u128> = [2, 4, 6, 8]
            .into_iter()
            .filter(|n| balance.cpus(nth(*n)) == Some(&Cpus::from([0])))
            .collect();
        for n in gone {
            assert!(balance.leave(nth(n)));
        }
        assert!(!balance.leave(nth(99)));
        assert_eq!(balance.level(&all).len(), 1);
        assert_eq!(spread(&balance, &all), 0);
    }

    #[test]
    fn another_size_keeps_what_it_can() {
        let (mut balance, all) = (Balance::default(), (0..8).collect::<Cpus>());
        start(&mut balance, 3, 2, &all);
        let small = balance.cpus(nth(3)).unwrap().clone();
        start(&mut balance, 3, 5, &all);
        let large = balance.cpus(nth(3)).unwrap().clone();
        assert!(small.is_subset(&large) && large.len() == 5);
        start(&mut balance, 3, 99, &all);
        assert_eq!(balance.cpus(nth(3)), Some(&all));
        start(&mut balance, 3, 1, &all);
        assert_eq!(balance.cpus(nth(3)).unwrap().len(), 1);
    }

    #[test]
    fn a_new_one_stays_where_it_was() {
        let (mut balance, all) = (Balance::default(), (0..4).collect::<Cpus>());
        balance.share(nth(0), 2, Cpus::from([1, 3]));
        assert!(balance.level(&all).is_empty());
        assert_eq!(balance.cpus(nth(0)), Some(&Cpus::from([1, 3])));
    }

    #[test]
    fn pins_come_and_go() {
        let (mut balance, all) = (Balance::default(), (0..4).collect::<Cpus>());
        start(&mut balance, 1, 4, &all);
        balance.pin(nth(2), Cpus::from([1, 2]));
        assert_eq!(balance.level(&all), BTreeSet::from([nth(1)]));
        assert_eq!(balance.cpus(nth(1)), Some(&Cpus::from([0, 3])));
        balance.leave(nth(2));
        balance.level(&all);
        assert_eq!(balance.cpus(nth(1)), Some(&all));
        // Somewhere it must run.
        balance.pin(nth(2), all.clone());
        balance.level(&all);
        assert_eq!(balance.cpus(nth(1)), Some(&all));
    }

    #[test]
    fn an_instance_stays_in_a_node() {
        let nodes = vec![Cpus::from([0, 2, 4, 6]), Cpus::from([1, 3, 5, 7])];
        let all: Cpus = (0..8).collect();
        let mut balance = Balance::new(nodes.clone());
        for n in 1..5 {
            start(&mut balance, n, 2, &all);
            let cpus = balance.cpus(nth(n)).unwrap();
            assert!(nodes.iter().any(|node| cpus.is_subset(node)), "{cpus:?}");
        }
        assert_eq!(spread(&balance, &all), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Start(u128, usize),
        Pin(u128, Cpus),
        Stop(u128),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let id = 0..20_u128;
        let step = prop_oneof![
            5 => (id.clone(), 1..9_usize).prop_map(|(n, vcpus)| Step::Start(n, vcpus)),
            1 => (id.clone(), proptest::collection::btree_set(0..8_u32, 1..3))
                .prop_map(|(n, cpus)| Step::Pin(n, cpus)),
            3 => id.prop_map(Step::Stop),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn no_cpu_carries_more_than_one_vcpu_more(
            steps in steps(), count in 1..8_u32, parted in any::<bool>()
        ) {
            let all: Cpus = (0..count).collect();
            let half = |odd| all.iter().copied().filter(|cpu| cpu % 2 == odd).collect();
            let nodes = if parted { vec![half(0), half(1)] } else { Vec::new() };
            let mut balance = Balance::new(nodes);
            for step in &steps {
                match step {
                    Step::Start(n, vcpus) => {
                        balance.share(nth(*n), *vcpus, Cpus::new());
                        balance.fit(nth(*n), &all);
                    }
                    Step::Pin(n, cpus) => balance.pin(nth(*n), cpus.clone()),
                    Step::Stop(n) => {
                        balance.leave(nth(*n));
                    }
                }
                let before = balance.shared.clone();
                let moved = balance.level(&all);
                let pool = balance.free(&all);
                let dedicated: Cpus = balance.pinned.values().flatten().copied().collect();
                prop_assert!(spread(&balance, &pool) <= 1);
                for (id, seat) in &balance.shared {
                    prop_assert_eq!(seat.cpus.len(), seat.vcpus.min(pool.len()));
                    prop_assert!(seat.cpus.is_subset(&pool));
                    prop_assert!(all.is_subset(&dedicated) || seat.cpus.is_disjoint(&dedicated));
                    prop_assert_eq!(seat.cpus != before[id].cpus, moved.contains(id));
                }
                // Once level, nobody moves again.
                prop_assert!(balance.level(&all).is_empty());
            }
        }
    }
}
