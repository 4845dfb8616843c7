package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// route is what `ip -json route` says of one; without a device where it leads nowhere.
type route struct{ Dst, Dev, Table string }

// checkRoutes refuses where the machine has a network at the cluster's very addresses, and would lose whom it reaches
// there.
func checkRoutes() error {
	out, err := exec.Command("ip", "-4", "-json", "route", "show", "table", "all").Output()
	// A machine that is asked before anything is installed; `up` asks again.
	if errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask for the machine's routes: %w", err)
	}
	var routes []route
	if err := json.Unmarshal(out, &routes); err != nil {
		return fmt.Errorf("read the machine's routes: %w", err)
	}
	return conflict(routes)
}

func conflict(routes []route) error {
	networks := []struct{ use, network string }{
		{"services", serviceNetwork}, {"pods", podNetwork}, {"its node", nodeAddress + linkPrefix},
	}
	for _, r := range routes {
		there, ok := destination(r.Dst)
		// Our own routes, or those of a cluster that was killed.
		if !ok || r.Dev == hostLink {
			continue
		}
		for _, n := range networks {
			network := netip.MustParsePrefix(n.network)
			// A wider one (a VPN's 10.0.0.0/8, say) may have nobody at these addresses.
			if !there.Overlaps(network) || there.Bits() < network.Bits() {
				continue
			}
			way := r.Dst
			if r.Dev != "" {
				way += " dev " + r.Dev
			}
			// Others than the main table are named by `ip`.
			if r.Table != "" {
				way += " table " + r.Table
			}
			return unsupported{fmt.Sprintf("this machine has a route %s, and the cluster uses %s for %s; give that network other addresses, or take the route away while the cluster runs (`ip route delete %s`)",
				way, network.Masked(), n.use, way)}
		}
	}
	return nil
}

// destination reads a network, or an address without its length; false for `default`.
func destination(text string) (netip.Prefix, bool) {
	if strings.Contains(text, "/") {
		network, err := netip.ParsePrefix(text)
		return network, err == nil
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(address, address.BitLen()), true
}
