//! From what is there to what is wanted: which objects go, which come, and in how many transactions.

use std::collections::{BTreeSet, HashSet};

use nix::errno::Errno;

use super::Error;
use super::encode::{self, Object, SetIds, Shape, attribute, hook_kind, hook_number, kind};
use super::netlink::{Failure, Message, Socket};
use super::table::{Chain, Contents, Hook, Set, Table};

mod generation;

use generation::{generation_of, of_generation};

/// The `nfgenmsg` before the attributes.
const FIXED: usize = 4;
const ANONYMOUS: u32 = 0x1;
/// Two that apply at the same time get into each other's way; the one that is refused looks again.
const ATTEMPTS: usize = 5;

/// The sets whose elements outlive the table's replacement.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept(BTreeSet<String>);

impl Kept {
    /// None: everything is made anew.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The sets with these names, also where the new table does not mention them. A name that ends in `*` stands for
    /// all that begin so.
    pub fn sets<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(str::to_owned).collect())
    }

    fn has(&self, name: &str) -> bool {
        let begins = |kept: &String| kept.strip_suffix('*').is_some_and(|start| name.starts_with(start));
        self.0.contains(name) || self.0.iter().any(begins)
    }
}

/// Brings the kernel from what is there to `table`, in transactions of no more than `most` bytes and no more than the
/// socket has room for.
pub(super) fn apply(socket: &mut Socket, table: &Table, kept: &Kept, most: usize) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let there = There::look(socket, &table.name)?;
        match replace(socket, table, kept, &there, most) {
            Err(Error::Refused { errno: Errno::ENOENT | Errno::EEXIST | Errno::EBUSY, .. })
                if attempt < ATTEMPTS && There::look(socket, &table.name)? != there =>
            {
                attempt += 1;
            }
            done => return done,
        }
    }
}

fn replace(socket: &mut Socket, table: &Table, kept: &Kept, there: &There, most: usize) -> Result<(), Error> {
    let objects = at_once(table, kept, there);
    let bytes = size(&objects);
    let room =
        socket.room_for(bytes).map_err(|failure| Error::of("the table".to_owned(), failure, &[]))?.min(most);
    if bytes <= room { transact(socket, &objects) } else { in_stages(socket, table, kept, there, room) }
}

/// Everything old goes and everything new comes, in one transaction.
fn at_once(table: &Table, kept: &Kept, there: &There) -> Vec<Object> {
    let mut ids = SetIds::default();
    let mut objects = vec![encode::table(&table.name)];
    objects.extend(there.is_some().then(|| forget_rules(&table.name, None)));
    objects.extend(stale_sets(table, kept, there).map(|set| forget_set(&table.name, set)));
    objects.extend(stale_chains(table, there).map(|chain| forget_chain(&table.name, chain)));
    objects.extend(new_sets(table, kept, there).map(|set| encode::set(table, set, &mut ids)));
    objects.extend(table.chains.iter().map(|chain| encode::chain(table, chain)));
    objects.extend(new_sets(table, kept, there).flat_map(|set| encode::elements(table, set)));
    objects.extend(table.chains.iter().flat_map(|chain| rules(table, chain, &mut ids)));
    objects
}

/// What no packet reaches comes first, in as many transactions as it takes; then the chains at the hooks turn to it
/// in one; then what they have turned from goes.
///
/// The told sets are filled by name, so they stay under theirs; those that are not kept lose their elements.
fn in_stages(
    socket: &mut Socket,
    table: &Table,
    kept: &Kept,
    there: &There,
    room: usize,
) -> Result<(), Error> {
    let emptied =
        told_sets(table).filter(|name| !kept.has(name) && there.sets.iter().any(|set| set.name == *name));
    let emptied: Vec<_> = emptied.map(|set| empty_set(&table.name, set)).collect();
    let kept = &Kept(kept.0.iter().map(String::as_str).chain(told_sets(table)).map(str::to_owned).collect());
    let new = of_generation(table, kept, there.latest_generation() + 1);
    let table_name = &table.name;
    let mut ids = SetIds::default();
    let mut arriving = vec![encode::table(table_name)];
    arriving.extend(new_sets(&new, kept, there).map(|set| encode::set(&new, set, &mut ids)));
    arriving.extend(unhooked(&new).map(|chain| encode::chain(&new, chain)));
    arriving.extend(new_sets(&new, kept, there).flat_map(|set| encode::elements(&new, set)));
    arriving.extend(unhooked(&new).flat_map(|chain| rules(&new, chain, &mut ids)));
    for part in parts(&arriving, room) {
        transact(socket, part)?;
    }

    let old_hooks = || there.chains.iter().filter(|chain| chain.hook.is_some());
    let mut turn: Vec<_> = old_hooks().map(|chain| forget_rules(table_name, Some(&chain.name))).collect();
    let stale: HashSet<_> = stale_chains(table, there).collect();
    turn.extend(
        old_hooks()
            .filter(|chain| stale.contains(chain.name.as_str()))
            .map(|chain| forget_chain(table_name, &chain.name)),
    );
    turn.extend(hooked(&new).map(|chain| encode::chain(&new, chain)));
    turn.extend(hooked(&new).flat_map(|chain| rules(&new, chain, &mut ids)));
    turn.extend(emptied);
    transact(socket, &turn)?;

    let old_chains =
        || there.chains.iter().filter(|chain| chain.hook.is_none()).map(|chain| chain.name.as_str());
    let mut leaving: Vec<_> = old_chains().map(|chain| forget_rules(table_name, Some(chain))).collect();
    leaving.extend(stale_sets(table, kept, there).map(|set| forget_set(table_name, set)));
    leaving.extend(old_chains().map(|chain| forget_chain(table_name, chain)));
    parts(&leaving, room).try_for_each(|part| transact(socket, part))
}

fn hooked(table: &Table) -> impl Iterator<Item = &Chain> {
    table.chains.iter().filter(|chain| chain.hook.is_some())
}

fn unhooked(table: &Table) -> impl Iterator<Item = &Chain> {
    table.chains.iter().filter(|chain| chain.hook.is_none())
}

fn rules(table: &Table, chain: &Chain, ids: &mut SetIds) -> Vec<Object> {
    let rules = chain.rules.iter().enumerate();
    rules.map(|(index, rule)| encode::rule(table, chain, index, rule, ids)).collect()
}

fn told_sets(table: &Table) -> impl Iterator<Item = &str> {
    let told =
        table.sets.iter().filter(|set| matches!(set.contents, Contents::Told(..) | Contents::Ways(..)));
    told.map(|set| set.name.as_str())
}

/// The sets to make: all but those that stay.
fn new_sets<'a>(
    table: &'a Table,
    kept: &'a Kept,
    there: &'a There,
) -> impl Iterator<Item = &'a Set> + use<'a> {
    table.sets.iter().filter(move |set| {
        let found = there.sets.iter().find(|found| found.name == set.name);
        !(kept.has(&set.name) && found.is_some_and(|found| found.shape == Shape::of(&set.contents)))
    })
}

/// The sets to remove: all but those that stay.
fn stale_sets<'a>(table: &'a Table, kept: &'a Kept, there: &'a There) -> impl Iterator<Item = &'a str> {
    there.sets.iter().filter_map(move |found| {
        let wanted = table.sets.iter().find(|set| set.name == found.name);
        let alike = wanted.is_none_or(|set| Shape::of(&set.contents) == found.shape);
        (!(kept.has(&found.name) && alike)).then_some(found.name.as_str())
    })
}

/// The chains to remove: all but those that are at the right hook already. Those stay, since a new one would drop
/// what comes while the transaction runs: its policy holds at once.
fn stale_chains<'a>(table: &'a Table, there: &'a There) -> impl Iterator<Item = &'a str> {
    there.chains.iter().filter_map(move |found| {
        let wanted = hooked(table).find(|chain| chain.name == found.name).and_then(|chain| chain.hook);
        let stays = wanted.is_some_and(|hook| found.hook == Some(Hooked::of(&hook)));
        (!stays).then_some(found.name.as_str())
    })
}

fn forget_rules(table: &str, chain: Option<&str>) -> Object {
    const RULE_CHAIN: u16 = 2;
    let mut request = encode::message(kind::DELETE_RULE, 0);
    request.push_text(attribute::TABLE, table);
    if let Some(chain) = chain {
        request.push_text(RULE_CHAIN, chain);
    }
    Object::new("to remove old rules".to_owned(), request)
}

fn empty_set(table: &str, set: &str) -> Object {
    let request = encode::about(kind::DELETE_ELEMENT, 0, table, attribute::NAME, set);
    Object::new(format!("to empty set {set}"), request)
}

fn forget_set(table: &str, set: &str) -> Object {
    let request = encode::about(kind::DELETE_SET, 0, table, attribute::NAME, set);
    Object::new(format!("to remove set {set}"), request)
}

fn forget_chain(table: &str, chain: &str) -> Object {
    let request = encode::about(kind::DELETE_CHAIN, 0, table, attribute::CHAIN_NAME, chain);
    Object::new(format!("to remove chain {chain}"), request)
}

/// The bytes of a transaction, with its head and end.
fn size(objects: &[Object]) -> usize {
    40 + objects.iter().map(Object::length).sum::<usize>()
}

/// `objects` in order, in parts that each fit into `room` as far as an object by itself does.
fn parts(objects: &[Object], room: usize) -> impl Iterator<Item = &[Object]> {
    let mut rest = objects;
    std::iter::from_fn(move || {
        let mut bytes = size(&[]);
        let fitting = rest.iter().take_while(|object| {
            bytes += object.length();
            bytes <= room
        });
        let fitting = fitting.count().max(1);
        let (part, behind) = rest.split_at_checked(fitting)?;
        rest = behind;
        Some(part)
    })
}

fn transact(socket: &mut Socket, objects: &[Object]) -> Result<(), Error> {
    let requests =
        || objects.iter().flat_map(|object| object.requests.iter().map(move |request| (object, request)));
    socket.transact(requests().map(|(_, request)| request)).map_err(|failure| {
        let place = match &failure {
            Failure::Refused { place, .. } => *place,
            Failure::Unanswered | Failure::Restless | Failure::TooLong | Failure::Socket(_) => None,
        };
        match place.and_then(|place| requests().nth(place)) {
            Some((object, _)) => Error::of(object.name.clone(), failure, &object.features),
            None => Error::of("the transaction as a whole".to_owned(), failure, &["CONFIG_NF_TABLES"]),
        }
    })
}

/// What is in the kernel under the table's name.
#[derive(Clone, PartialEq, Eq, Debug)]
struct There {
    chains: Vec<FoundChain>,
    sets: Vec<FoundSet>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct FoundChain {
    name: String,
    hook: Option<Hooked>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct FoundSet {
    name: String,
    shape: Shape,
}

/// What of a hook cannot be changed once the chain is there.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Hooked {
    kind: String,
    number: u32,
    priority: i32,
}

impl Hooked {
    fn of(hook: &Hook) -> Self {
        Self {
            kind: hook_kind(hook.kind).to_owned(),
            number: hook_number(hook.place),
            priority: hook.priority,
        }
    }
}

impl There {
    fn look(socket: &mut Socket, table: &str) -> Result<Self, Error> {
        let ask = |kind, name: &str| {
            (encode::message(kind, 0), format!("to list the {name} of table inet {table}"))
        };
        let (chains, what) = ask(kind::GET_CHAIN, "chains");
        let chains = socket.dump(&chains, |message| FoundChain::read(message, table));
        let chains = chains.map_err(|failure| Error::of(what, failure, &["CONFIG_NF_TABLES"]))?;
        let (sets, what) = ask(kind::GET_SET, "sets");
        let sets = socket.dump(&sets, |message| FoundSet::read(message, table));
        let sets = sets.map_err(|failure| Error::of(what, failure, &["CONFIG_NF_TABLES"]))?;
        Ok(Self { chains, sets })
    }

    fn is_some(&self) -> bool {
        !self.chains.is_empty() || !self.sets.is_empty()
    }

    fn latest_generation(&self) -> u64 {
        let names = self.chains.iter().map(|chain| &chain.name).chain(self.sets.iter().map(|set| &set.name));
        names.filter_map(|name| generation_of(name)).max().unwrap_or(0)
    }
}

impl FoundChain {
    fn read(message: &Message<'_>, table: &str) -> Option<Self> {
        let attributes = message.attributes(FIXED);
        if attributes.text(attribute::TABLE)? != table {
            return None;
        }
        let hook = attributes.inside(attribute::CHAIN_HOOK);
        let hook = hook.be32(attribute::HOOK_NUMBER).and_then(|number| {
            let priority = hook.bytes(attribute::HOOK_PRIORITY).map(i32::from_be_bytes)?;
            Some(Hooked { kind: attributes.text(attribute::CHAIN_TYPE)?.to_owned(), number, priority })
        });
        Some(Self { name: attributes.text(attribute::CHAIN_NAME)?.to_owned(), hook })
    }
}

impl FoundSet {
    fn read(message: &Message<'_>, table: &str) -> Option<Self> {
        let attributes = message.attributes(FIXED);
        let flags = attributes.be32(attribute::SET_FLAGS).unwrap_or(0);
        if attributes.text(attribute::TABLE)? != table || flags & ANONYMOUS != 0 {
            return None;
        }
        let shape = Shape {
            flags,
            key_type: attributes.be32(attribute::SET_KEY_TYPE).unwrap_or(0),
            key_length: attributes.be32(attribute::SET_KEY_LENGTH)?,
        };
        Some(Self { name: attributes.text(attribute::NAME)?.to_owned(), shape })
    }
}
