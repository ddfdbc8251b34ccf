// The hub of a hub-and-spoke network: gates behind an internal load balancer, to which the spokes route all they send.
//     az deployment group create -g GROUP -f packaging/azure/bicep/hub.bicep -p @parameters.json

@description('Begins the name of every resource.')
param name string = 'outgate'

@description('The region.')
param location string = resourceGroup().location

@description('The hub network\'s address range.')
param hubPrefix string = '10.0.0.0/24'

@description('The gates\' subnet, in the hub\'s range. It has no route table: the gates\' own traffic must not come back to them.')
param gateSubnetPrefix string = '10.0.0.0/26'

@description('The load balancer\'s address: the spokes\' next hop and resolver. In the gates\' subnet.')
param frontendAddress string = '10.0.0.4'

@description('The spokes\' address ranges. Nobody else is served.')
@minLength(1)
param clientPrefixes array

@description('Where the spokes\' IPv6 goes: a gate\'s address, or nothing to drop it.')
param ipv6NextHop string = ''

@description('Gates.')
@minValue(1)
param instances int = 2

@description('Availability zones of the region, for the gates and the load balancer\'s address.')
param zones array = ['1', '2', '3']

@description('The gates\' VM size, one with accelerated networking.')
param size string = 'Standard_D2as_v5'

@description('The user who may log in, through Bastion or the serial console: no rule lets SSH in.')
param adminUsername string = 'outgate'

@description('The public key of that user.')
param adminSshKey string

@description('Where the gates fetch the Debian package.')
param packageUrl string

@description('The package\'s digest, as sha256sum prints it.')
@minLength(64)
@maxLength(64)
param packageSha256 string

@description('The policy, as YAML. A change replaces the gates one by one; to change it in seconds, write /etc/outgate/policy.d on them.')
param policy string

@description('The resolvers that the gates ask.')
param upstreams array = ['168.63.129.16']

@description('Tags of every resource.')
param tags object = {}

var adminPort = 9180

// The words of the template, each in turn, but for the comment at the top that names them. None of the values holds
// another's word: addresses, a digest, base64.
var file = loadTextContent('../../cloud-init/hub.yaml')
var template = '#cloud-config\n${substring(file, indexOf(file, 'package_update:'))}'
var clients = '"${join(clientPrefixes, '", "')}"'
var withPackage = replace(replace(template, '@PACKAGE_URL@', packageUrl), '@PACKAGE_SHA256@', packageSha256)
var withAddresses = replace(replace(withPackage, '@CLIENTS@', clients), '@UPSTREAMS@', '"${join(upstreams, '", "')}"')
var cloudInit = replace(withAddresses, '@POLICY_BASE64@', base64(policy))

var loadBalancerName = '${name}-gates'
var frontendId = resourceId('Microsoft.Network/loadBalancers/frontendIPConfigurations', loadBalancerName, 'gates')
var poolId = resourceId('Microsoft.Network/loadBalancers/backendAddressPools', loadBalancerName, 'gates')
var probeId = resourceId('Microsoft.Network/loadBalancers/probes', loadBalancerName, 'ready')

// --- What reaches a gate

resource gateRules 'Microsoft.Network/networkSecurityGroups@2024-05-01' = {
  name: '${name}-gates'
  location: location
  tags: tags
  properties: {
    securityRules: [
      {
        // The probe, before the rule that keeps everybody else from the admin listener.
        name: 'probe'
        properties: {
          priority: 100
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: 'AzureLoadBalancer'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: string(adminPort)
        }
      }
      {
        name: 'no-admin'
        properties: {
          priority: 110
          direction: 'Inbound'
          access: 'Deny'
          protocol: '*'
          sourceAddressPrefix: '*'
          sourcePortRange: '*'
          destinationAddressPrefix: gateSubnetPrefix
          destinationPortRange: string(adminPort)
        }
      }
      {
        name: 'no-ssh'
        properties: {
          priority: 120
          direction: 'Inbound'
          access: 'Deny'
          protocol: 'Tcp'
          sourceAddressPrefixes: clientPrefixes
          sourcePortRange: '*'
          destinationAddressPrefix: gateSubnetPrefix
          destinationPortRange: '22'
        }
      }
      {
        // To any destination: the gates are the spokes' router.
        name: 'spokes'
        properties: {
          priority: 200
          direction: 'Inbound'
          access: 'Allow'
          protocol: '*'
          sourceAddressPrefixes: clientPrefixes
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '*'
        }
      }
      {
        name: 'nobody-else'
        properties: {
          priority: 4096
          direction: 'Inbound'
          access: 'Deny'
          protocol: '*'
          sourceAddressPrefix: '*'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '*'
        }
      }
    ]
  }
}

// --- What a gate reaches the internet by

resource outboundAddress 'Microsoft.Network/publicIPAddresses@2024-05-01' = {
  name: '${name}-outbound'
  location: location
  tags: tags
  sku: {
    name: 'Standard'
  }
  properties: {
    publicIPAllocationMethod: 'Static'
  }
}

resource outbound 'Microsoft.Network/natGateways@2024-05-01' = {
  name: '${name}-outbound'
  location: location
  tags: tags
  sku: {
    name: 'Standard'
  }
  properties: {
    idleTimeoutInMinutes: 10
    publicIpAddresses: [
      {
        id: outboundAddress.id
      }
    ]
  }
}

resource hub 'Microsoft.Network/virtualNetworks@2024-05-01' = {
  name: '${name}-hub'
  location: location
  tags: tags
  properties: {
    addressSpace: {
      addressPrefixes: [hubPrefix]
    }
    subnets: [
      {
        name: 'gates'
        properties: {
          addressPrefix: gateSubnetPrefix
          defaultOutboundAccess: false
          networkSecurityGroup: {
            id: gateRules.id
          }
          natGateway: {
            id: outbound.id
          }
        }
      }
    ]
  }
}

// --- The load balancer

resource loadBalancer 'Microsoft.Network/loadBalancers@2024-05-01' = {
  name: loadBalancerName
  location: location
  tags: tags
  sku: {
    name: 'Standard'
  }
  properties: {
    frontendIPConfigurations: [
      {
        name: 'gates'
        zones: zones
        properties: {
          subnet: {
            id: hub.properties.subnets[0].id
          }
          privateIPAllocationMethod: 'Static'
          privateIPAddress: frontendAddress
        }
      }
    ]
    backendAddressPools: [
      {
        name: 'gates'
      }
    ]
    probes: [
      {
        // A gate that drains, has no policy in force or cannot write its records is not ready.
        name: 'ready'
        properties: {
          protocol: 'Http'
          port: adminPort
          requestPath: '/readyz'
          intervalInSeconds: 5
          numberOfProbes: 2
        }
      }
    ]
    loadBalancingRules: [
      {
        // HA ports: every flow of TCP and UDP on every port, to one gate by its five-tuple.
        name: 'ha-ports'
        properties: {
          frontendIPConfiguration: {
            id: frontendId
          }
          backendAddressPool: {
            id: poolId
          }
          probe: {
            id: probeId
          }
          protocol: 'All'
          frontendPort: 0
          backendPort: 0
          enableFloatingIP: false
          enableTcpReset: true
          idleTimeoutInMinutes: 30
          disableOutboundSnat: true
        }
      }
    ]
  }
}

// --- The gates

resource gates 'Microsoft.Compute/virtualMachineScaleSets@2024-07-01' = {
  name: '${name}-gates'
  location: location
  tags: tags
  zones: zones
  sku: {
    name: size
    capacity: instances
  }
  dependsOn: [
    loadBalancer
  ]
  properties: {
    orchestrationMode: 'Uniform'
    overprovision: false
    zoneBalance: length(zones) > 1
    upgradePolicy: {
      mode: 'Rolling'
      rollingUpgradePolicy: {
        maxBatchInstancePercent: 50
        maxUnhealthyInstancePercent: 50
        maxUnhealthyUpgradedInstancePercent: 50
        pauseTimeBetweenBatches: 'PT30S'
      }
    }
    automaticRepairsPolicy: {
      enabled: true
      gracePeriod: 'PT10M'
    }
    virtualMachineProfile: {
      securityProfile: {
        securityType: 'TrustedLaunch'
        uefiSettings: {
          secureBootEnabled: true
          vTpmEnabled: true
        }
      }
      osProfile: {
        computerNamePrefix: name
        adminUsername: adminUsername
        customData: base64(cloudInit)
        linuxConfiguration: {
          disablePasswordAuthentication: true
          ssh: {
            publicKeys: [
              {
                path: '/home/${adminUsername}/.ssh/authorized_keys'
                keyData: adminSshKey
              }
            ]
          }
        }
      }
      storageProfile: {
        imageReference: {
          publisher: 'Canonical'
          offer: 'ubuntu-24_04-lts'
          sku: 'server'
          version: 'latest'
        }
        osDisk: {
          createOption: 'FromImage'
          caching: 'ReadWrite'
          managedDisk: {
            storageAccountType: 'Premium_LRS'
          }
        }
      }
      networkProfile: {
        healthProbe: {
          id: probeId
        }
        networkInterfaceConfigurations: [
          {
            // Without IP forwarding Azure drops what is not for the interface's own address.
            name: 'gate'
            properties: {
              primary: true
              enableIPForwarding: true
              enableAcceleratedNetworking: true
              ipConfigurations: [
                {
                  name: 'gate'
                  properties: {
                    primary: true
                    subnet: {
                      id: hub.properties.subnets[0].id
                    }
                    loadBalancerBackendAddressPools: [
                      {
                        id: poolId
                      }
                    ]
                  }
                }
              ]
            }
          }
        ]
      }
      diagnosticsProfile: {
        bootDiagnostics: {
          enabled: true
        }
      }
    }
  }
}

// --- What the spokes' subnets are given

resource spokeRoutes 'Microsoft.Network/routeTables@2024-05-01' = {
  name: '${name}-spokes'
  location: location
  tags: tags
  properties: {
    disableBgpRoutePropagation: true
    routes: [
      {
        name: 'internet'
        properties: {
          addressPrefix: '0.0.0.0/0'
          nextHopType: 'VirtualAppliance'
          nextHopIpAddress: frontendAddress
        }
      }
      {
        name: 'internet-ipv6'
        properties: empty(ipv6NextHop)
          ? {
              addressPrefix: '::/0'
              nextHopType: 'None'
            }
          : {
              addressPrefix: '::/0'
              nextHopType: 'VirtualAppliance'
              nextHopIpAddress: ipv6NextHop
            }
      }
    ]
  }
}

@description('For each of the spokes\' subnets.')
output routeTableId string = spokeRoutes.id

@description('For the spokes\' networks.')
output dnsServers array = [frontendAddress]

@description('For the peerings, which must allow forwarded traffic in both directions.')
output hubNetworkId string = hub.id

@description('What origins see.')
output outboundAddress string = outboundAddress.properties.ipAddress
