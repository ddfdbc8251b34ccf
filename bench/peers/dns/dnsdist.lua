-- A filtering forwarder: what is not in `names.txt` is denied, and the rest goes through a packet cache.
setLocal("127.0.0.1:{port}", {reusePort = true})
for _ = 2, {threads} do
  addLocal("127.0.0.1:{port}", {reusePort = true})
end
setACL({"127.0.0.0/8"})
setUDPMultipleMessagesVectorSize(64)
setSecurityPollSuffix("")
newServer({address = "127.0.0.1:{upstream}", sockets = 8, healthCheckMode = "up"})
getPool(""):setCache(newPacketCache(200000))
allowed = newDNSNameSet()
for name in io.lines("names.txt") do
  allowed:add(newDNSName(name))
end
{log}
addAction(NotRule(QNameSetRule(allowed)), RCodeAction(DNSRCode.NXDOMAIN))
