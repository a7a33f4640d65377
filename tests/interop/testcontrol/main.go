// Testcontrol runs the control server that Tailscale's own integration tests use
// (tailscale.com/tstest/integration/testcontrol) as a process, so that tests in another language can drive it.
//
// It says "ready" on standard output once it listens. Then each line of standard input is a command, and each is
// answered by one line: "ok", "ok JSON" or "error TEXT". It ends with its standard input. Nodes go by their host names.
//
//	nodes                     all nodes, as a JSON list
//	fake N                    adds N peers that nobody runs
//	storm NODE COUNT RATE     tells NODE of COUNT changes of single fake peers, RATE a second, and of nothing else any more
//	expire true|false         every node's key is expired, or is not any longer
//	jail NODE PEER true|false PEER may not open flows to NODE
//	routes NODE [PREFIX,…]    NODE may carry packets to these networks
//	masquerade NODE PEER ADDRESS   PEER knows NODE by this address
//	rules NODE RULES          NODE's packet filter is this JSON list from now on; it is told of nothing else any more
//	approve NODE              what an administrator does when the server was started with -approval
//	login URL                 what a person does with the URL that -interactive makes the server hand out
//	c2n NODE PATH [BODY]      a request to the node itself; answers {"status":…,"body":…}
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
)

const (
	maxFakes    = 50_000           // all of them fit between firstFake and the end of 100.64.0.0/10
	c2nPatience = 10 * time.Second // how long a node may take to answer
)

// firstFake is the address of the first peer that nobody runs; real nodes count up from 100.64.0.1.
var firstFake = netip.MustParseAddr("100.96.0.0")

type driver struct {
	server *testcontrol.Server
	base   string
	domain string
	fakes  int
}

// command is one line of standard input: how many words it takes, and what it does with them.
type command struct {
	least, most int
	run         func(*driver, []string) (any, error)
}

var commands = map[string]command{
	"nodes":      {0, 0, func(d *driver, _ []string) (any, error) { return d.server.AllNodes(), nil }},
	"fake":       {1, 1, (*driver).fake},
	"storm":      {3, 3, (*driver).storm},
	"expire":     {1, 1, (*driver).expire},
	"jail":       {3, 3, (*driver).jail},
	"rules":      {2, 2, (*driver).rules},
	"routes":     {1, 2, (*driver).routes},
	"masquerade": {3, 3, (*driver).masquerade},
	"approve":    {1, 1, (*driver).approve},
	"login":      {1, 1, (*driver).login},
	"c2n":        {2, 3, (*driver).c2n},
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "host:port to serve on")
	derpMap := flag.String("derp-map", "", "a JSON file with the tailcfg.DERPMap that every node gets")
	authKey := flag.String("auth-key", "", "the key that every node must present; empty: none is asked for")
	domain := flag.String("domain", "tail.test", "the tailnet's MagicDNS domain")
	interactive := flag.Bool("interactive", false, "hand out a login URL to every node")
	approval := flag.Bool("approval", false, "keep every node waiting for an administrator's approval")
	flag.Parse()

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	d := &driver{base: "http://" + listener.Addr().String(), domain: *domain}
	d.server = &testcontrol.Server{
		ExplicitBaseURL:    d.base,
		RequireAuth:        *interactive,
		RequireAuthKey:     *authKey,
		RequireMachineAuth: *approval,
		AllOnline:          true,
		MagicDNSDomain:     *domain,
		DNSConfig:          &tailcfg.DNSConfig{Proxied: true, Domains: []string{*domain}},
		DERPMap:            &tailcfg.DERPMap{},
		Logf:               log.Printf,
	}
	if *derpMap != "" {
		text, err := os.ReadFile(*derpMap)
		if err != nil {
			log.Fatal(err)
		}
		if err := json.Unmarshal(text, d.server.DERPMap); err != nil {
			log.Fatalf("%s: %v", *derpMap, err)
		}
	}
	go func() { log.Fatal(http.Serve(listener, d.server)) }()
	fmt.Println("ready")

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(d.answer(strings.Fields(lines.Text())))
	}
}

// answer carries one command out and words the line that answers it.
func (d *driver) answer(words []string) string {
	if len(words) == 0 {
		return "error no command"
	}
	c, known := commands[words[0]]
	if !known {
		return "error no such command: " + words[0]
	}
	if arguments := len(words) - 1; arguments < c.least || arguments > c.most {
		return fmt.Sprintf("error %s does not take %d words", words[0], arguments)
	}
	result, err := c.run(d, words[1:])
	if err != nil {
		return "error " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	if result == nil {
		return "ok"
	}
	text, err := json.Marshal(result)
	if err != nil {
		return "error " + err.Error()
	}
	return "ok " + string(text)
}

// node finds a node by its host name.
func (d *driver) node(name string) (*tailcfg.Node, error) {
	for _, node := range d.server.AllNodes() {
		if node.Hostinfo.Valid() && node.Hostinfo.Hostname() == name {
			return node, nil
		}
	}
	return nil, fmt.Errorf("no node %q", name)
}

// fake adds peers with names and addresses like those of real nodes: the server's own fakes have neither host
// information, without which tailscaled's status panics, nor addresses of the tailnet.
func (d *driver) fake(words []string) (any, error) {
	count, err := strconv.Atoi(words[0])
	if err != nil || count < 1 || d.fakes+count > maxFakes {
		return nil, fmt.Errorf("between 1 and %d fake peers, please", maxFakes)
	}
	known := map[key.NodePublic]bool{}
	for _, node := range d.server.AllNodes() {
		known[node.Key] = true
	}
	for range count {
		d.server.AddFakeNode()
	}
	for _, node := range d.server.AllNodes() {
		if known[node.Key] {
			continue
		}
		d.dress(node)
		d.server.UpdateNode(node)
	}
	return nil, nil
}

// dress gives a fake peer the next name and addresses.
func (d *driver) dress(node *tailcfg.Node) {
	d.fakes++
	quad := firstFake.As4()
	quad[2], quad[3] = byte(d.fakes>>8), byte(d.fakes)
	v4 := netip.AddrFrom4(quad)
	name := fmt.Sprintf("fake%d", d.fakes)
	node.ID = tailcfg.NodeID(1<<32 + d.fakes)
	node.StableID = tailcfg.StableNodeID(name)
	node.Name = name + "." + d.domain + "."
	node.Hostinfo = (&tailcfg.Hostinfo{OS: "linux", Hostname: name}).View()
	node.Addresses = []netip.Prefix{netip.PrefixFrom(v4, 32), netip.PrefixFrom(tsaddr.Tailscale4To6(v4), 128)}
	node.AllowedIPs = node.Addresses
}

// storm sends patches, each of which changes whether one fake peer is online: every time round the other way.
func (d *driver) storm(words []string) (any, error) {
	node, err := d.node(words[0])
	if err != nil {
		return nil, err
	}
	count, err := strconv.Atoi(words[1])
	if err != nil {
		return nil, err
	}
	rate, err := strconv.Atoi(words[2])
	if err != nil || rate < 1 || d.fakes < 1 {
		return nil, errors.New("a storm needs a rate and fake peers")
	}
	begin := time.Now()
	for i := range count {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		online := i/d.fakes%2 == 1
		patch := &tailcfg.PeerChange{NodeID: tailcfg.NodeID(1<<32 + 1 + i%d.fakes), Online: &online}
		message := &tailcfg.MapResponse{PeersChangedPatch: []*tailcfg.PeerChange{patch}}
		if !d.server.AddRawMapResponse(node.Key, message) {
			return nil, errors.New("the node does not follow its netmap")
		}
	}
	return nil, nil
}

func (d *driver) expire(words []string) (any, error) {
	expired, err := strconv.ParseBool(words[0])
	if err == nil {
		d.server.SetExpireAllNodes(expired)
	}
	return nil, err
}

// pair finds the node and the peer that the first two words name.
func (d *driver) pair(words []string) (node, peer *tailcfg.Node, err error) {
	if node, err = d.node(words[0]); err == nil {
		peer, err = d.node(words[1])
	}
	return node, peer, err
}

func (d *driver) jail(words []string) (any, error) {
	node, peer, err := d.pair(words)
	if err != nil {
		return nil, err
	}
	jailed, err := strconv.ParseBool(words[2])
	if err == nil {
		d.server.SetJailed(node.Key, peer.Key, jailed)
	}
	return nil, err
}

func (d *driver) routes(words []string) (any, error) {
	node, err := d.node(words[0])
	if err != nil {
		return nil, err
	}
	var routes []netip.Prefix
	for _, text := range strings.Split(strings.Join(words[1:], ","), ",") {
		if text == "" {
			continue
		}
		route, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		routes = append(routes, route)
	}
	d.server.SetSubnetRoutes(node.Key, routes)
	return nil, nil
}

func (d *driver) masquerade(words []string) (any, error) {
	node, peer, err := d.pair(words)
	if err != nil {
		return nil, err
	}
	address, err := netip.ParseAddr(words[2])
	if err == nil {
		d.server.SetMasqueradeAddresses([]testcontrol.MasqueradePair{
			{Node: node.Key, Peer: peer.Key, NodeMasqueradesAs: address},
		})
	}
	return nil, err
}

func (d *driver) rules(words []string) (any, error) {
	node, err := d.node(words[0])
	if err != nil {
		return nil, err
	}
	filter := []tailcfg.FilterRule{}
	if err := json.Unmarshal([]byte(words[1]), &filter); err != nil {
		return nil, err
	}
	if !d.server.AddRawMapResponse(node.Key, &tailcfg.MapResponse{PacketFilter: filter}) {
		return nil, errors.New("the node does not follow its netmap")
	}
	return nil, nil
}

func (d *driver) approve(words []string) (any, error) {
	node, err := d.node(words[0])
	if err == nil && !d.server.CompleteDeviceApproval(d.base, d.base+"/admin", &node.Key) {
		err = errors.New("the server did not approve it")
	}
	return nil, err
}

func (d *driver) login(words []string) (any, error) {
	if !d.server.CompleteAuth(words[0]) {
		return nil, errors.New("nobody was given this URL")
	}
	return nil, nil
}

func (d *driver) c2n(words []string) (any, error) {
	node, err := d.node(words[0])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c2nPatience)
	defer cancel()
	body := ""
	if len(words) > 2 {
		body = words[2]
	}
	request, err := http.NewRequestWithContext(ctx, "POST", "http://node"+words[1], strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := d.server.NodeRoundTripper(node.Key).RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return map[string]any{"status": response.StatusCode, "body": string(text)}, err
}
