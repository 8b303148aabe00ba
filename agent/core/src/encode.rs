//! Flow records and probe events to ntopng's wire form. (Comes with this module's own commit.)
