//! Labels of an agent: what selectors choose by.

use std::collections::BTreeMap;

/// Most labels of an agent, or of a selector.
///
/// Some tens describe a host. Half of it cuts what provisioning tools add; double it, and 10,000 agents' labels take more
/// memory than their streams' buffers.
pub const LABELS_MAX: usize = 32;

/// Longest key and longest value of a label, in octets. Source: labels of Kubernetes objects, which these often are made of.
pub const LABEL_OCTETS_MAX: usize = 63;

/// Labels by key: at most [`LABELS_MAX`]; keys of 1 to [`LABEL_OCTETS_MAX`] octets and values of 0 to as many, of
/// `a-z A-Z 0-9 - _ . / :`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(BTreeMap<String, String>);

/// Why labels are refused. `Display` goes on after the label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelsRefused {
    /// There are too many.
    #[error("there are {0} labels; write at most {LABELS_MAX}")]
    TooMany(usize),
    /// A key or its value has other characters, or is too long, or the key is empty.
    #[error(
        "is no label; write a key of 1 to {LABEL_OCTETS_MAX} and a value of at most {LABEL_OCTETS_MAX} of a-z, A-Z, 0-9, '-', '_', '.', '/' and ':'"
    )]
    Label {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
}

impl Labels {
    /// Checks labels.
    ///
    /// # Errors
    ///
    /// [`LabelsRefused`]: the first mistake.
    pub fn parse(sent: &BTreeMap<String, String>) -> Result<Self, LabelsRefused> {
        if sent.len() > LABELS_MAX {
            return Err(LabelsRefused::TooMany(sent.len()));
        }
        let good = |text: &str| {
            let inner = |octet: u8| {
                octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.' | b'/' | b':')
            };
            text.len() <= LABEL_OCTETS_MAX && text.bytes().all(inner)
        };
        for (key, value) in sent {
            if key.is_empty() || !good(key) || !good(value) {
                return Err(LabelsRefused::Label {
                    key: key.clone(),
                    value: value.clone(),
                });
            }
        }
        Ok(Self(sent.clone()))
    }

    /// These labels, and those of `other` whose keys are not here; the first [`LABELS_MAX`] of them.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let mut both = self.0.clone();
        for (key, value) in &other.0 {
            if both.len() >= LABELS_MAX {
                break;
            }
            both.entry(key.clone()).or_insert_with(|| value.clone());
        }
        Self(both)
    }

    /// Whether each of `wanted` is here.
    #[must_use]
    pub fn has_all(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }

    /// Whether a key is in both with different values.
    #[must_use]
    pub fn contradicts(&self, other: &Self) -> bool {
        self.0
            .iter()
            .any(|(key, value)| other.0.get(key).is_some_and(|theirs| theirs != value))
    }

    /// As they travel.
    #[must_use]
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}
