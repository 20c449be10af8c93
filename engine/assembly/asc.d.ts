/**
 * The part of the AssemblyScript compiler's interface that we use. The package's own types declare AssemblyScript's
 * globals (`console`, `f64`, …) for every file of the project, in place of the platform's.
 */
interface Output {
  toString(): string
}

declare const asc: {
  main(
    args: readonly string[],
    io: { writeFile(name: string, contents: Uint8Array | string): void },
  ): Promise<{ readonly error: Error | null; readonly stderr: Output }>
  compileString(
    source: string,
    options: { readonly runtime: 'stub'; readonly importMemory?: boolean },
  ): Promise<{ readonly binary: Uint8Array | null; readonly stderr: Output }>
}
export default asc
