// Looks up names as a static Go program does, without the C library: `lookup NAME...` prints the first address of each, or `-`.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	for _, name := range os.Args[1:] {
		addresses, err := net.LookupHost(name)
		if err != nil {
			fmt.Println("-")
			continue
		}
		fmt.Println(addresses[0])
	}
}
