//! What two or more of the nskit tools share. In reading order:
//!
//! * [`id`]      id maps: pure algebra
//! * [`ns`]      the kinds of namespaces
//! * [`record`]  the lines that the tools exchange
//! * [`fail`]    one kind of failure, and how it is told
//! * [`word`]    words as a shell reads them back
//! * [`cli`]     options as data
//! * [`proc`]    facts out of /proc
//! * [`path`]    why a path could not be opened
//! * [`cgroup`]  a cgroup to be born into, there or new
//! * [`mounted`] mounts and their maps, by statmount(2)
//! * [`look`]    what every process is in
//! * [`scan`]    all namespaces, and what keeps them
//! * [`owners`]  the owners of files, on disk and through a map
//! * [`helper`]  other programs, asked or told, with a deadline
//! * [`user`]    users by name and number
//! * [`subid`]   /etc/subuid and /etc/subgid
//! * [`survey`]  what one of them says for one owner, and what is free
//! * [`etc`]     files below /etc: locked, replaced
//! * [`lease`]   slices of subordinate ids, held while a process lives
//! * [`preset`]  maps by name: root, same, subids, auto, keep, all
//! * [`target`]  the process or namespace file that an operand names
//! * [`feature`] what newer kernels have
//! * [`name`]    holders by name
//! * [`container`] containers by name
//! * [`step`]    effects, one file for each kernel object
//! * [`plan`]    a list of steps: printed, performed, tried
//! * [`idmap`]   a tree with its owners shifted
//! * [`ready`]   whether a program has said that it is ready
//! * [`mind`]    the only poll loop
//! * [`front`]   the foreground of a terminal, lent to the program
//! * [`pty`]     a terminal between the program and ours
//! * [`holder`]  who keeps namespaces that nobody lives in yet
//! * [`tool`]    what every tool does around its own decision
//! * [`sys`]     the calls that nix lacks; all unsafe code

pub mod cgroup;
pub mod cli;
pub mod container;
pub mod etc;
pub mod fail;
pub mod feature;
pub mod front;
pub mod helper;
pub mod holder;
pub mod id;
pub mod idmap;
pub mod lease;
pub mod look;
pub mod mind;
pub mod mounted;
pub mod name;
pub mod ns;
pub mod owners;
pub mod path;
pub mod plan;
pub mod preset;
pub mod proc;
pub mod pty;
pub mod ready;
pub mod record;
pub mod scan;
pub mod step;
pub mod subid;
pub mod survey;
pub mod sys;
pub mod target;
pub mod tool;
pub mod user;
pub mod word;
