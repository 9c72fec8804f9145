// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title IEEE 754 binary32 as docs/spec/07-inference.md, rule 0, writes it
/// @notice Round to nearest even, one rounding per operation, no fused multiply-add, subnormals kept. A value is its bit
/// pattern in the low 32 bits of a word. Every NaN that comes out is 0x7fc00000.
library F32 {
    uint256 internal constant NAN = 0x7fc00000;
    uint256 internal constant INF = 0x7f800000;
    uint256 internal constant ONE = 0x3f800000;
    uint256 private constant SIGN = 0x80000000;
    uint256 private constant MAGNITUDE = 0x7fffffff;
    uint256 private constant FRACTION = 0x7fffff;
    uint256 private constant HIDDEN = 0x800000;

    function add(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            uint256 x = a & MAGNITUDE;
            uint256 y = b & MAGNITUDE;
            if (x < y) (a, b, x, y) = (b, a, y, x);
            if (x >= INF) return x > INF || (y == INF && a != b) ? NAN : a;
            if (y == 0) return x == 0 ? a & b : a;
            // Subnormal numbers have the exponent of the least normal ones, without its hidden bit.
            uint256 e = x >> 23;
            uint256 f = y >> 23;
            x &= FRACTION;
            y &= FRACTION;
            if (e == 0) e = 1;
            else x |= HIDDEN;
            if (f == 0) f = 1;
            else y |= HIDDEN;
            uint256 d = e - f;
            if (d > 30) {
                // Less than a sixteenth of the last place: only that it is there matters.
                d = 30;
                y = 1;
            }
            x <<= d;
            uint256 high;
            if ((a ^ b) & SIGN == 0) {
                x += y;
                high = x >> (d + 24) == 0 ? d + 23 : d + 24;
                if (x >> high == 0) return (a & SIGN) | x; // two subnormal numbers: d is 0
            } else {
                x -= y;
                if (x == 0) return 0;
                high = x >> (d + 23) != 0 ? d + 23 : x >> (d + 22) != 0 ? d + 22 : msb(x);
            }
            if (high >= 23 && e + high > d + 23) return (a & SIGN) | _finish(e + high - d - 23, x, high - 23);
            return _packed(a & SIGN, int256(e) - int256(d), x);
        }
    }

    function sub(uint256 a, uint256 b) internal pure returns (uint256) {
        return add(a, b ^ SIGN);
    }

    function mul(uint256 a, uint256 b) internal pure returns (uint256 r) {
        unchecked {
            uint256 s = (a ^ b) & SIGN;
            uint256 e = (a >> 23) & 0xff;
            uint256 f = (b >> 23) & 0xff;
            if (e == 255 || f == 255) {
                a &= MAGNITUDE;
                b &= MAGNITUDE;
                return a > INF || b > INF || a == 0 || b == 0 ? NAN : s | INF;
            }
            if (e == 0 || f == 0) {
                uint256 x = e == 0 ? a & FRACTION : (a & FRACTION) | HIDDEN;
                uint256 y = f == 0 ? b & FRACTION : (b & FRACTION) | HIDDEN;
                if (e == 0) e = 1;
                if (f == 0) f = 1;
                return _packed(s, int256(e + f) - 150, x * y);
            }
            r = ((a & FRACTION) | HIDDEN) * ((b & FRACTION) | HIDDEN);
            uint256 down = r >> 47 == 0 ? 23 : 24;
            e += f + down;
            if (e <= 150) return _packed(s, int256(e - down) - 150, r);
            return s | _finish(e - 150, r, down);
        }
    }

    function div(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            uint256 s = (a ^ b) & SIGN;
            a &= MAGNITUDE;
            b &= MAGNITUDE;
            if (a > INF || b > INF) return NAN;
            if (a == INF) return b == INF ? NAN : s | INF;
            if (b == INF) return s;
            if (b == 0) return a == 0 ? NAN : s | INF;
            if (a == 0) return s;
            (int256 e, uint256 x) = _parts(a);
            (int256 f, uint256 y) = _parts(b);
            x <<= 60;
            uint256 q = (x / y) << 1;
            if (mulmod(x, 1, y) != 0) q |= 1;
            return _packed(s, e - f + 89, q); // 150 - 61
        }
    }

    function sqrt(uint256 a) internal pure returns (uint256) {
        unchecked {
            if (a & MAGNITUDE > INF) return NAN;
            if (a & MAGNITUDE == 0) return a;
            if (a & SIGN != 0) return NAN;
            if (a == INF) return a;
            (int256 e, uint256 x) = _parts(a);
            e -= 150; // x * 2^e is the number
            if (e & 1 != 0) {
                x <<= 1;
                e -= 1;
            }
            x <<= 60;
            uint256 r = uint256(1) << ((msb(x) >> 1) + 1);
            while (true) {
                uint256 next = (r + x / r) >> 1;
                if (next >= r) break;
                r = next;
            }
            return _packed(0, (e >> 1) - 31 + 150, (r << 1) | (r * r == x ? 0 : 1));
        }
    }

    /// @return The nearest number to an integer of less than 2^200.
    function fromInt(int256 i) internal pure returns (uint256) {
        unchecked {
            uint256 s;
            if (i < 0) (s, i) = (SIGN, -i);
            uint256 x = uint256(i);
            if (x >= 1 << 24 || x == 0) return _packed(s, 150, x);
            // Exact: the highest bit comes to where the hidden one is, and adds to the field.
            uint256 high;
            assembly ("memory-safe") {
                high := shl(4, lt(0xffff, x))
                high := or(high, shl(3, lt(0xff, shr(high, x))))
                high := or(high, shl(2, lt(0xf, shr(high, x))))
                high := or(high, shl(1, lt(3, shr(high, x))))
                high := or(high, lt(1, shr(high, x)))
            }
            return s | (((high + 126) << 23) + (x << (23 - high)));
        }
    }

    /// @return The nearest integer, ties to even, of a number below 2^31 in magnitude.
    function toInt(uint256 a) internal pure returns (int256) {
        unchecked {
            (int256 e, uint256 x) = _parts(a & MAGNITUDE);
            if (e >= 150) {
                x <<= uint256(e - 150);
            } else {
                uint256 down = uint256(150 - e);
                x = down > 60 ? 0 : (x + (uint256(1) << (down - 1)) - 1 + ((x >> down) & 1)) >> down;
            }
            return a & SIGN == 0 ? int256(x) : -int256(x);
        }
    }

    /// @param h A binary16.
    function fromHalf(uint256 h) internal pure returns (uint256) {
        unchecked {
            uint256 s = (h & 0x8000) << 16;
            uint256 e = (h >> 10) & 31;
            h &= 0x3ff;
            if (e == 31) return h == 0 ? s | INF : NAN;
            if (e == 0) return _packed(s, 126, h); // h * 2^-24
            return s | ((e + 112) << 23) | (h << 13);
        }
    }

    /// @return The binary16 nearest to a finite number, ties to even, at most 65504 in magnitude (rule 5).
    function toHalf(uint256 a) internal pure returns (uint256) {
        unchecked {
            uint256 s = (a & SIGN) >> 16;
            a &= MAGNITUDE;
            if (a >= 0x477fe000) return s | 0x7bff;
            uint256 e = a >> 23;
            if (e >= 113) {
                a -= 112 << 23;
                return s | ((a + 0xfff + ((a >> 13) & 1)) >> 13);
            }
            if (e < 102) return s;
            a = (a & FRACTION) | HIDDEN;
            e = 126 - e;
            return s | ((a + (uint256(1) << (e - 1)) - 1 + ((a >> e) & 1)) >> e);
        }
    }

    function isFinite(uint256 a) internal pure returns (bool) {
        return a & INF != INF;
    }

    /// @notice a < b of numbers that are no NaN; the two zeros are equal.
    function lt(uint256 a, uint256 b) internal pure returns (bool) {
        return key(a) < key(b);
    }

    /// @return An integer in the order of the numbers, 0 for both zeros.
    function key(uint256 a) internal pure returns (int256) {
        unchecked {
            return a & SIGN == 0 ? int256(a) : -int256(a & MAGNITUDE);
        }
    }

    /// @notice Rule 7's exp of a finite number or of minus infinity.
    function exp(uint256 x) internal pure returns (uint256) {
        unchecked {
            if (lt(x, 0xc2ae0000)) x = 0xc2ae0000; // -87
            if (lt(0x42b00000, x)) x = 0x42b00000; // 88
            uint256 n = sub(add(mul(x, 0x3fb8aa3b), 0x4b400000), 0x4b400000);
            uint256 y = sub(sub(x, mul(n, 0x3f318000)), mul(n, 0xb95e8083));
            uint256 p = mul(y, 0x39506967);
            p = mul(add(p, 0x3ab743ce), y);
            p = mul(add(p, 0x3c088908), y);
            p = mul(add(p, 0x3d2aa9c1), y);
            p = mul(add(p, 0x3e2aaaaa), y);
            p = add(p, 0x3f000000);
            p = add(add(mul(p, mul(y, y)), y), ONE);
            return (p + (uint256(toInt(n)) << 23)) & 0xffffffff;
        }
    }

    /// @return r The position of the highest bit of x > 0.
    function msb(uint256 x) internal pure returns (uint256 r) {
        assembly ("memory-safe") {
            r := shl(7, lt(0xffffffffffffffffffffffffffffffff, x))
            r := or(r, shl(6, lt(0xffffffffffffffff, shr(r, x))))
            r := or(r, shl(5, lt(0xffffffff, shr(r, x))))
            r := or(r, shl(4, lt(0xffff, shr(r, x))))
            r := or(r, shl(3, lt(0xff, shr(r, x))))
            r := or(r, shl(2, lt(0xf, shr(r, x))))
            r := or(r, shl(1, lt(3, shr(r, x))))
            r := or(r, lt(1, shr(r, x)))
        }
    }

    /// @dev A finite magnitude as x * 2^(e - 150).
    function _parts(uint256 a) private pure returns (int256 e, uint256 x) {
        unchecked {
            x = a & FRACTION;
            a >>= 23;
            if (a == 0) return (1, x);
            return (int256(a), x | HIDDEN);
        }
    }

    /// @dev x * 2^(e - 150), rounded; s is the sign's bit.
    function _packed(uint256 s, int256 e, uint256 x) private pure returns (uint256) {
        unchecked {
            if (x == 0) return s;
            int256 last = e + int256(msb(x)) - 23; // exponent field of the result, if it is normal
            if (last < 1) last = 1;
            int256 down = last - e;
            if (down <= 0) {
                x <<= uint256(-down);
                return last > 254 ? s | INF : s | ((uint256(last - 1) << 23) + x);
            }
            return down > 250 ? s : s | _finish(uint256(last), x, uint256(down));
        }
    }

    /// @dev x >> down to nearest even with exponent field e >= 1; the hidden bit, or a carry into it, adds to the field.
    function _finish(uint256 e, uint256 x, uint256 down) private pure returns (uint256 r) {
        unchecked {
            if (down != 0) x = (x + (uint256(1) << (down - 1)) - 1 + ((x >> down) & 1)) >> down;
            r = ((e - 1) << 23) + x;
            if (r > INF) r = INF;
        }
    }
}
