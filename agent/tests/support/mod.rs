//! A reader of the two things these tests need from BTF: a structure's size and its members.
//!
//! Source: Linux `include/uapi/linux/btf.h`. Input is the checked-in object, so a malformed one may panic here.

use std::collections::HashMap;

use object::{Object as _, ObjectSection as _};

#[derive(Clone, Default)]
struct Type {
    kind: u32,
    size_or_type: u32,
    members: Vec<(String, u32, u32)>,
    array: (u32, u32),
}

/// Name, offset and size of a member, in octets.
pub(crate) type Member = (String, usize, usize);

pub(crate) struct Structures {
    types: Vec<Type>,
    by_name: HashMap<String, usize>,
}

impl Structures {
    /// Reads the `.BTF` section of an object file.
    pub(crate) fn of_object(object: &[u8]) -> Self {
        let file = object::File::parse(object).expect("an object file");
        let section = file.section_by_name(".BTF").expect("a .BTF section");
        Self::parse(section.data().expect("its octets"))
    }

    fn parse(octets: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(octets[at..at + 4].try_into().expect("four octets"));
        let (header, types_at, types_len, strings_at) = (word(4), word(8), word(12), word(16));
        let string = |offset: u32| {
            let at = (header + strings_at + offset) as usize;
            let end = at + octets[at..].iter().position(|&octet| octet == 0).expect("a NUL");
            String::from_utf8_lossy(&octets[at..end]).into_owned()
        };
        let (mut types, mut by_name) = (vec![Type::default()], HashMap::new());
        let mut at = (header + types_at) as usize;
        let end = at + types_len as usize;
        while at < end {
            let (name, info, size_or_type) = (string(word(at)), word(at + 4), word(at + 8));
            let (kind, count) = (info >> 24 & 31, (info & 0xffff) as usize);
            at += 12;
            let mut this = Type {
                kind,
                size_or_type,
                ..Type::default()
            };
            at += match kind {
                1 | 14 | 17 => 4,
                3 => {
                    this.array = (word(at), word(at + 8));
                    12
                }
                4 | 5 => {
                    let member = |i: usize| {
                        (
                            string(word(at + i * 12)),
                            word(at + i * 12 + 4),
                            word(at + i * 12 + 8),
                        )
                    };
                    this.members = (0..count).map(member).collect();
                    count * 12
                }
                6 | 13 => count * 8,
                15 | 19 => count * 12,
                _ => 0,
            };
            if kind == 4 {
                by_name.entry(name).or_insert(types.len());
            }
            types.push(this);
        }
        Self { types, by_name }
    }

    fn size(&self, id: u32) -> u32 {
        let this = &self.types[id as usize];
        match this.kind {
            2 => 8,
            3 => this.array.1 * self.size(this.array.0),
            8 | 9 | 10 | 11 | 18 => self.size(this.size_or_type),
            _ => this.size_or_type,
        }
    }

    /// Size and `(member, offset, size)` of a structure, all in octets.
    pub(crate) fn structure(&self, name: &str) -> Option<(usize, Vec<Member>)> {
        let this = &self.types[*self.by_name.get(name)?];
        let row = |(name, id, bits): &(String, u32, u32)| {
            (name.clone(), (bits / 8) as usize, self.size(*id) as usize)
        };
        Some((this.size_or_type as usize, this.members.iter().map(row).collect()))
    }
}
