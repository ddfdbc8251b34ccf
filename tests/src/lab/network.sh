# Builds the lab's network and keeps it until standard input ends. Runs as root of a user namespace of its own, in
# mount and process namespaces of its own; LAB is the lab's folder.
#
#   training 10.1.0.4  ─┐
#                       ├─ hub 10.0.0.4, hub2 10.0.1.4 ─ internet (every address in LAB/addresses)
#   scoring  10.1.2.4  ─┘
set -euo pipefail
exec 3<&0 </dev/null

on() { nsenter --net="$LAB/net/$1" -- "${@:2}"; }

# settings PLACE net/KEY=VALUE…
settings() {
    # shellcheck disable=SC2016  # the inner shell expands it
    on "$1" bash -c 'for pair; do echo "${pair#*=}" >"/proc/sys/net/${pair%%=*}"; done' - "${@:2}"
}

for place in training scoring hub hub2 internet; do
    : >"$LAB/net/$place"
    unshare --net="$LAB/net/$place" true
    # Addresses are there at once, not after a second of looking for duplicates.
    settings $place ipv6/conf/{all,default}/accept_dad=0 ipv6/conf/{all,default}/dad_transmits=0 \
        ipv6/conf/{all,default}/accept_ra=0 ipv4/conf/{all,default}/rp_filter=0
    on $place ip link set lo up
done

# The hubs forward whatever they are given, source-routed packets too: what is refused, the gate refuses.
for hub in hub hub2; do
    settings $hub ipv4/ip_forward=1 ipv6/conf/all/forwarding=1 ipv4/conf/{all,default}/accept_source_route=1 \
        ipv4/conf/{all,default}/send_redirects=0 ipv6/conf/{all,default}/accept_redirects=0 \
        netfilter/nf_conntrack_acct=1
done

# join HUB NET4 NET6: the hub between the spokes and its own link to the internet. It has its address on every link, as
# if they were the one that a hub in a cloud has.
join() {
    on "$1" ip -batch - <<EOF
link add training type veth peer name $1 netns $LAB/net/training
link add scoring type veth peer name $1 netns $LAB/net/scoring
link add internet type veth peer name $1 netns $LAB/net/internet
address add $2.4/32 dev training
address add $2.4/32 dev scoring
address add fe80::1/64 dev training
address add fe80::1/64 dev scoring
address add $3::4/128 dev training
address add $3::4/128 dev scoring
address add $2.4/24 dev internet
address add $3::4/64 dev internet
link set training up
link set scoring up
link set internet up
route add 10.1.0.0/24 dev training src $2.4
route add 10.1.2.0/24 dev scoring src $2.4
route add fd00:1::/64 dev training
route add fd00:2::/64 dev scoring
EOF
    on internet ip -batch - <<EOF
address add $2.1/24 dev $1
address add $3::1/64 dev $1
link set $1 up
EOF
    on "$1" ip -batch - <<EOF
route add default via $2.1
route add default via $3::1
EOF
}
join hub 10.0.0 fd00
join hub2 10.0.1 fd00:0:0:1

# spoke PLACE ADDRESS4 ADDRESS6: everything goes by the first hub, as a cloud's route table says it.
spoke() {
    on "$1" ip -batch - <<EOF
address add $2/24 dev hub
address add $3/64 dev hub
link set hub up
link set hub2 up
route add default via 10.0.0.4 dev hub onlink
route add default via fe80::1 dev hub
EOF
}
spoke training 10.1.0.4 fd00:1::4
spoke scoring 10.1.2.4 fd00:2::4

on internet ip -batch "$LAB/addresses"
on internet ip -batch - <<EOF
route add 10.1.0.0/16 via 10.0.0.4
route add fd00:1::/64 via fd00::4
route add fd00:2::/64 via fd00::4
EOF

# What a machine of a spoke knows of names and trusts.
covered() { [[ ! -e $2 ]] || mount --bind "$LAB/etc/$1" "$(readlink -f "$2")"; }
covered resolv.conf /etc/resolv.conf
covered hosts /etc/hosts
covered nsswitch.conf /etc/nsswitch.conf
mount -t tmpfs trust /etc/ssl/certs
cp "$LAB/etc/ca.pem" /etc/ssl/certs/ca-certificates.crt
ln -s ca-certificates.crt "/etc/ssl/certs/$(openssl x509 -hash -noout -in "$LAB/etc/ca.pem").0"

echo ready
exec cat <&3 >/dev/null
