# Writes a binary policy with one more permissive type. Format: security/selinux/ss/policydb.c.
import struct, sys

data, name = open(sys.argv[1], "rb").read(), sys.argv[2].encode()
at = data.find(struct.pack("<I", len(name)))
while not (data[at + 16 : at + 16 + len(name)] == name and struct.unpack_from("<I", data, at + 8)[0] == 1):
    at = data.find(struct.pack("<I", len(name)), at + 1)
    assert at >= 0, "no such type"
value = struct.unpack_from("<I", data, at + 4)[0]
capabilities = 32
permissive = capabilities + 12 + 12 * struct.unpack_from("<I", data, capabilities + 8)[0]
assert struct.unpack_from("<I", data, permissive + 8)[0] == 0, "there are permissive types already"
start = value - value % 64
bitmap = struct.pack("<IIIIQ", 64, start + 64, 1, start, 1 << value % 64)
sys.stdout.buffer.write(data[:permissive] + bitmap + data[permissive + 12 :])
