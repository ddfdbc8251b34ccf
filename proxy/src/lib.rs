//! Outgate: an outbound firewall that lets approved names out and nothing else.
//!
//! A connection comes in at a [`listener`], becomes a session, names its destination ([`head`], [`connect`],
//! [`http`]) and then takes the one [`path`]: decide → resolve → vet → dial → relay → record.
#![forbid(unsafe_code)]

pub mod admin;
pub mod answer;
pub mod appliance;
pub mod audit;
pub mod budget;
pub mod cli;
pub mod client;
pub mod config;
pub mod connect;
pub mod console;
pub mod control;
pub mod cores;
pub mod dial;
pub mod entrance;
pub mod flow;
pub mod gate;
pub mod head;
pub mod hello;
pub mod http;
pub mod kernel;
pub mod listener;
pub mod metrics;
pub mod network;
pub mod original;
pub mod own;
pub mod path;
pub mod policy;
pub mod readiness;
pub mod record;
pub mod recorder;
pub mod reject;
pub mod relay;
pub mod reload;
pub mod sandbox;
pub mod serve;
pub mod session;
pub mod systemd;
pub mod tally;
pub mod trail;
pub mod transparent;
pub mod tunnel;
pub mod upload;
