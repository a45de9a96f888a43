/** About 8 KB as a model writes: prose, lists, tables, code. */
export function sample() {
  const part = `## Rivers and how they meet

A **river** is more than *water*: it carries [sediment](https://example.org/sediment), \`salt\` and time. Where two of them
meet, the slower one gives way, and what it carried falls to the ground.

1. The source is small.
   - It may be a spring, or a glacier.
   - It is **cold** either way.
2. The middle is long.

| river | length | country |
|:--|--:|---|
| Spree | 403 km | Germany |
| Tama | 138 km | Japan |

\`\`\`python
def confluence(a: float, b: float) -> float:
    """Where two rivers meet."""
    return max(a, b)  # The slower one gives way.

for length in (403, 138):
    print(confluence(length, 100))
\`\`\`

> What flows does not come back.

`;
  return part.repeat(Math.ceil(8192 / part.length)).slice(0, 8192);
}
